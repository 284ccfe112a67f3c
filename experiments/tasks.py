"""Tasks of lm-evaluation-harness, put to a run: `gam evaluate --tasks=FILE`."""

from __future__ import annotations

import json
import pathlib

from absl import flags

from experiments.text_scorer import LONGEST, TextScorer, begins_of
from experiments.writer import TextRun
from sharding import processes
from sharding.errors import UserError, at

OTHERS = ("data", "field", "format", "split", "stride", "tokens")
"""Flags of texts that are scored, not of tasks."""


def define_task_flags() -> None:
    """--tasks, --rows and --bos."""
    flags.DEFINE_string(
        "tasks", None, "A task file of lm-evaluation-harness (YAML), or a folder of them."
    )
    flags.DEFINE_integer("rows", 16, "With --tasks: requests side by side.", 1)
    flags.DEFINE_bool(
        "bos",
        None,
        "With --tasks: begin every text with the token that texts begin with; as the tokenizer of "
        "the model folder says if not given.",
    )


def ask() -> None:
    """Puts the tasks of --tasks to the run and prints the scores.

    Raises:
      UserError: lm-eval is not installed; a flag that is not of tasks; a task file that cannot be
        opened.
    """
    args = flags.FLAGS
    if other := next((name for name in OTHERS if args[name].present), None):
        raise UserError(f"--{other} is not of --tasks, which say themselves what is asked")
    try:
        from experiments import lm_eval_adapter
    except ImportError as error:
        raise UserError("--tasks needs lm-eval: pip install 'gam_jax[eval]'") from error
    run = TextRun.open(args.run)
    begins = begins_of(run, args.bos)
    longest = args.window or run.model.limit or LONGEST
    with at(f"--window={longest}"):
        try:
            run.model.check_length(longest)
        except ValueError as error:
            raise UserError(str(error)) from error
    tasks = lm_eval_adapter.open_tasks(pathlib.Path(args.tasks))
    writer = run.load(args.checkpoint, args.streams)
    model = lm_eval_adapter.RunLM(TextScorer(writer, begins, longest, args.rows))
    with at(writer.where):
        found = lm_eval_adapter.scores_of(model, tasks)
    if not processes.is_first():
        return
    if args.json:
        print(json.dumps({"run": args.run, "step": writer.step, "tasks": found}))
        return
    print(f"{args.run} at step {writer.step}")
    for task, values in found.items():
        shown = (f"{name} {value:,.4f}".removesuffix(".0000") for name, value in values.items())
        print(f"{task:>14}  {', '.join(shown)}")
