"""Scores a trained run on its validation split, or on any other text.

  gam evaluate --run=runs/gam_small
  gam evaluate --run=runs/gam_small --data=text:my_code/ --json
  gam evaluate --run=runs/of_four_streams --streams=1
  gam evaluate --run=runs/gam_small --window=1024 --stride=512
  gam evaluate --run=runs/llama --tasks=my_task.yaml

Prints loss (nats per token), perplexity, of texts bits per byte, and the number of tokens; with
--tasks, the scores of tasks of lm-evaluation-harness.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib

from absl import flags

from experiments import cli
from experiments.config_flags import define_classes_flag, register_classes
from experiments.devices import define_cache_flag, define_device_flags, layout_from_flags, say_where
from experiments.streams import of_streams, params_of_streams
from experiments.tasks import ask, define_task_flags
from gam_jax.config import from_dict, to_dict
from gam_jax.data import Data, Dataset, Text
from gam_jax.data.text_dataset import TextDataset
from gam_jax.models import LanguageModel, SideTuned
from gam_jax.training.checks import check_fits
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder, check_data
from gam_jax.training.scoring import score
from gam_jax.training.step import make_eval_step
from sharding import processes
from sharding.checkpoint import Checkpoints
from sharding.errors import UserError, at

FORMATS = ("text", "prompt", "chat")
SPLITS = ("train", "validation", "test")


def define_flags() -> None:
    """The command line."""
    define_classes_flag()
    cli.define_path("run", "runs/gam_small", "Run folder.")
    flags.DEFINE_string(
        "data", None, "Data set by name (text:PATH, ...); the run's own if not given."
    )
    flags.DEFINE_string("field", None, "Field of the text of --data, where it is records.")
    flags.DEFINE_enum(
        "format", None, FORMATS, "What a record of --data is; as the run has it if not given."
    )
    flags.DEFINE_enum("split", "validation", SPLITS, "Which split of it.")
    flags.DEFINE_string(
        "checkpoint", "latest", "latest, latest-good, best (validation loss), or a step."
    )
    flags.DEFINE_integer("streams", 0, "Of parallel streams, the first ones alone; 0 for all.", 0)
    flags.DEFINE_integer("window", 0, "Tokens of a window, each begun anew; 0: the run's own.", 0)
    flags.DEFINE_integer(
        "stride",
        0,
        "From one window's start to the next; where they overlap, a token is scored in the first "
        "that holds it. 0: as the run has it, or a whole --window.",
        0,
    )
    flags.DEFINE_integer("tokens", 0, "Score that many first tokens only; 0 for all.", 0)
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    define_task_flags()
    define_device_flags()
    define_cache_flag()


def main() -> None:
    """Loads the run, then the data, then scores."""
    args = flags.FLAGS
    register_classes()
    if args.tasks:
        ask()
        return
    folder = RunFolder(pathlib.Path(args.run))
    experiment = folder.experiment()
    config = _data(experiment)
    layout = layout_from_flags(experiment.parallel.exact).in_order.without_workers
    shown = of_streams(experiment, args.streams)
    both = isinstance(config, Text) and isinstance(experiment.data, Text)
    kept = folder.kept(experiment.data if both else config)
    step, params = params_of_streams(folder, experiment, layout, args.checkpoint, args.streams)
    data = config.open(kept)
    with Checkpoints(folder.checkpoints, read_only=True) as checkpoints:
        extra = checkpoints.extra(step)
    names = {"tokenizer"} if args.data else None  # other data may differ, but not their tokens
    check_data(extra, data, f"checkpoint {step} in {folder.path}", names)
    data = _cut(data, args.split, args.tokens)
    shown = dataclasses.replace(shown, data=config)
    check_fits(shown, layout, data.batch(layout.row_parts))
    say_where(layout.mesh.size)
    eval_step = make_eval_step(shown.model, layout, experiment.train.accumulate)
    with at(f"{folder.path} at checkpoint {step}"):
        found = score(eval_step, params, data, shown.model, experiment.train.batch, layout)
    if not processes.is_first():
        return
    if args.json:
        facts = {"run": str(folder.path), "step": step, "data": config.name, "split": args.split}
        if isinstance(config, Text):
            facts |= {"window": config.window, "stride": config.step}
        print(json.dumps({**facts, **found.to_json()}))
        return
    print(f"{folder.path} at step {step} on {args.split} of {config.name}")
    for name, value in found.to_json().items():
        print(f"{name.replace('_', ' '):>14}  {value:,.4f}".removesuffix(".0000"))


def _cut(data: Dataset, split: str, tokens: int) -> Dataset:
    """The split of the data that is scored, or its first tokens.

    Raises:
      UserError: data that are not text have one split alone, their validation rows.
    """
    if isinstance(data, TextDataset):
        return data.scored_on(split, tokens)
    if split != "validation":
        raise UserError(
            f"--split={split}: {data.config.name} is scored on its validation rows alone"
        )
    return data.first(0, tokens)


def _data(experiment: Experiment) -> Data:
    """The run's data with what the flags change.

    Raises:
      UserError: flags that are for text where the data are not; windows longer than a sequence of
        this model may be, or ones that leave gaps.
    """
    args, config = flags.FLAGS, experiment.data
    if args.data:
        values = {**to_dict(config), "name": args.data, **_of_records(config)}
        config = from_dict(Data, values, "--data")
    elif args.field is not None or args.format is not None:
        flag = f"--field={args.field}" if args.format is None else f"--format={args.format}"
        raise UserError(f"{flag} is of --data, which is not given")
    if not (args.window or args.stride):
        return config
    model = experiment.model
    model = model.inner if isinstance(model, SideTuned) else model
    if not isinstance(config, Text) or not isinstance(model, LanguageModel):
        raise UserError(f"--window and --stride are for text, and the data is {config.name}")
    if args.window:
        config = dataclasses.replace(config, window=args.window, stride=0)
    if args.stride:
        config = dataclasses.replace(config, stride=args.stride)
    try:
        model.check_length(config.window)
    except ValueError as error:
        raise UserError(f"--window={args.window}: {error}") from error
    if args.stride > config.window:
        raise UserError(
            f"--stride={args.stride} leaves gaps between windows of {config.window}: give at most "
            f"{config.window}"
        )
    return config


def _of_records(config: Data) -> dict[str, str]:
    """The fields of the data that --field and --format change."""
    args = flags.FLAGS
    found = {} if args.field is None else {"field": args.field}
    if args.format is None:
        return found
    found["format"] = args.format
    if args.format != "chat":
        found["template"] = ""
    if args.format != "text" and isinstance(config, Text) and config.documents == "joined":
        found["documents"] = "rows"
    return found


if __name__ == "__main__":
    cli.run(main, define_flags)
