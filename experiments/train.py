"""Trains a language model on text, and shows what it learned beside baselines of the same text.

The default needs no download: a small GAM reads the source code of Python's standard library.

  python -m experiments.train
  python -m experiments.train --config=experiments/configs/gam_paper.py --run=runs/paper
  python -m experiments.train --run=runs/books --config.data.name=text:books/
  python -m experiments.train --run=runs/books --resume
  python -m experiments.train --run=runs/tuned --init=runs/books@best --init_exclude='final_norm/*'
  python -m experiments.train --emulate=8 --mesh=data=2,seq=2,tensor=2

Every field of the config file can be set with --config.a.b=value. A run is a folder:
config.json, tokenizer.json, metrics.jsonl, checkpoints/, tensorboard/, curves.png. Ctrl-C and
SIGTERM save and leave; --resume continues the very same run. See docs/checkpoints.md.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags
from rich.table import Table as TextTable

from experiments import cli
from experiments.config_flags import define_config_flag, experiment_from_flags
from experiments.curves import draw_curves
from experiments.devices import define_device_flags, layout_from_flags
from experiments.load_figure import draw_load
from experiments.tables import print_table
from gam_jax.data import TextDataset, load
from gam_jax.data.baselines import baselines
from gam_jax.data.pipeline import windows
from gam_jax.params import count_params
from gam_jax.training.checks import check_batch, check_fits, refusal
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder, write_atomically
from gam_jax.training.heartbeat import Heartbeat
from gam_jax.training.lock import run_lock
from gam_jax.training.loop import Beginning, Outcome, train
from gam_jax.training.metrics import read_metrics
from gam_jax.training.progress import Progress
from gam_jax.training.warm_start import Source, plan
from sharding import processes
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.replan import Plan, replan

LATEST_GOOD = "latest-good"


def define_flags() -> None:
    """The command line."""
    define_config_flag()
    flags.DEFINE_string("run", None, "Run folder; runs/<name of the config> if not given.")
    flags.DEFINE_flag(
        flags.Flag(
            _Resume(),
            flags.ArgumentSerializer(),
            "resume",
            None,
            "Continue the run, or start it where there is none yet; --resume=latest-good goes on "
            "from the newest checkpoint that is whole.",
            boolean=True,
        )
    )
    flags.DEFINE_string("init", None, "Start from parameters of another run: RUN, or RUN@STEP.")
    flags.DEFINE_string("init_include", "", "Only parameters of these names, as 'blocks/*,emb*'.")
    flags.DEFINE_string("init_exclude", "", "But not those of these names.")
    flags.DEFINE_enum(
        "init_vocab",
        "same",
        ("same", "resize"),
        "resize: cut a vocabulary of another size, or fill it up with new rows.",
    )
    flags.DEFINE_bool("json", False, "Print the summary as one JSON object on standard output.")
    flags.DEFINE_string(
        "plan",
        "",
        "Train nothing: print, as JSON, the mesh to go on with where that many processes x "
        "devices of each are left, as 2x4. --mesh is what was wanted.",
    )
    define_device_flags()


class _Resume(flags.ArgumentParser):
    """None, or the checkpoint to go on from. --resume alone says the latest."""

    syntactic_help = "latest or latest-good"

    def parse(self, argument: Any) -> str | None:
        """The choice that a word stands for."""
        words = {"true": "latest", "false": None, "latest": "latest", LATEST_GOOD: LATEST_GOOD}
        if argument in (True, False):
            argument = str(argument).lower()
        if argument not in words:
            raise ValueError(f"say latest or {LATEST_GOOD}")
        return words[argument]

    def flag_type(self) -> str:
        """Its name in --help."""
        return "checkpoint"


def main() -> None:
    """Checks everything that can be checked, then trains."""
    folder = _run_folder()
    saved = folder.saved_config() if flags.FLAGS.resume else None
    if saved is None:
        folder.check_new()
    experiment = experiment_from_flags(saved)
    beginning = _beginning(folder)
    if flags.FLAGS.plan:
        print(json.dumps(dataclasses.asdict(_plan(experiment, folder, saved))))
        return
    with Heartbeat.from_environment() as heartbeat:
        layout = layout_from_flags(experiment.parallel)
        heartbeat.has(jax.local_device_count())
        check_batch(experiment, layout)
        tokens = experiment.train.batch * experiment.data.window
        progress = Progress(tokens, processes.is_first())
        with run_lock(folder.path, progress.say):
            _run(experiment, folder, saved, layout, progress, heartbeat, beginning)


def _run(
    experiment: Experiment,
    folder: RunFolder,
    saved: dict[str, Any] | None,
    layout: Layout,
    progress: Progress,
    heartbeat: Heartbeat,
    beginning: Beginning,
) -> None:
    progress.say(f"reading {experiment.data.name}")
    experiment, data = _load(experiment, folder, saved)
    check_fits(experiment, layout)
    if beginning.source is not None:
        plan(beginning.source, experiment.model.table())
    if saved is not None:
        folder.check_same(experiment)
    elif processes.is_first():
        folder.start(experiment, data.tokenizer)
    processes.barrier("run folder")
    lines = baselines_of(data)
    if processes.is_first():
        write_atomically(folder.baselines, json.dumps(lines, indent=2) + "\n")
    progress.say(_describe(experiment, data, folder, layout))
    outcome = train(experiment, data, folder, layout, progress, heartbeat, beginning)
    if not processes.is_first():
        return

    losses = {name: values["loss"] for name, values in lines.items()}
    rows = read_metrics(folder.metrics)
    draw_curves(rows, losses, folder.curves)
    draw_load(rows, folder.load)
    if flags.FLAGS.json:
        print(json.dumps(_summary(outcome, lines, folder)))
    else:
        _print_summary(outcome, lines, folder)


def _load(
    experiment: Experiment, folder: RunFolder, saved: dict[str, Any] | None
) -> tuple[Experiment, TextDataset]:
    data = load(experiment.data, None if saved is None else folder.load_tokenizer())
    return fit_to_data(experiment, data)


def _plan(experiment: Experiment, folder: RunFolder, saved: dict[str, Any] | None) -> Plan:
    """The mesh for the devices that --plan names."""
    count, times, devices = flags.FLAGS.plan.partition("x")
    if not (times and count.isdecimal() and devices.isdecimal()):
        raise UserError(f"--plan={flags.FLAGS.plan}: write processes x devices of each, as 2x4")
    if saved is None:  # else the vocabulary is known
        experiment, _ = _load(experiment, folder, saved)
    if total := int(count) * int(devices):  # else `replan` says that none are left
        processes.emulate(total)
    return replan(
        flags.FLAGS.mesh, int(count), int(devices), lambda sizes: refusal(experiment, sizes)
    )


def fit_to_data(experiment: Experiment, data: TextDataset) -> tuple[Experiment, TextDataset]:
    """The experiment with the tokenizer's vocabulary; the data as long as it asks for.

    Raises:
      UserError: a vocabulary or window that does not fit the model.
    """
    model, vocab = experiment.model, data.tokenizer.vocab
    if model.vocab not in (None, vocab):
        raise UserError(
            f"model.vocab={model.vocab} but the tokenizer has {vocab}: leave model.vocab out, or "
            f"use the tokenizer that the model was made for"
        )
    if model.context and model.context < experiment.data.window:
        raise UserError(
            f"data.window={experiment.data.window} is longer than the {model.context} learned "
            f"positions of model.context: lower the one or raise the other"
        )
    limit = experiment.train.validation_tokens
    if limit and limit < len(data.validation) - 1:
        data = dataclasses.replace(data, validation=data.validation[: limit + 1])
    if (limit := experiment.train.tokens) and limit < len(data.train) - 1:
        data = dataclasses.replace(data, train=data.train[: limit + 1])
        windows(data.train, experiment.data.window, experiment.data.step)
    return dataclasses.replace(experiment, model=dataclasses.replace(model, vocab=vocab)), data


def baselines_of(data: TextDataset) -> dict[str, dict[str, float]]:
    """Baselines scored on the tokens that the model is validated on."""
    tokens = len(data.validation)
    return baselines(
        data.train,
        data.validation,
        data.tokenizer.vocab,
        round(tokens * data.bytes_per_token),
        data.corpus.documents("validation"),
        window=data.config.window,
        stride=data.config.step,
    )


def _run_folder() -> RunFolder:
    name = flags.FLAGS.run
    if not name:
        file = config_flags.get_config_filename(flags.FLAGS["config"])
        name = pathlib.Path("runs") / pathlib.Path(file).stem
    return RunFolder(pathlib.Path(name))


def _beginning(folder: RunFolder) -> Beginning:
    """What --resume and --init ask for; a UserError where they do not go together."""
    args = flags.FLAGS
    source = None
    if args.init:
        source = Source.parse(
            args.init, args.init_include, args.init_exclude, args.init_vocab == "resize"
        )
        if folder.config.exists():
            raise UserError(
                f"--init starts a new run, and {folder.path} holds one: name another with --run"
            )
        source.open()
    elif args.init_include or args.init_exclude or args.init_vocab != "same":
        raise UserError("--init_include, --init_exclude, --init_vocab need --init=RUN")
    return Beginning(args.resume or "latest", source)


def _describe(experiment: Experiment, data: TextDataset, folder: RunFolder, layout: Layout) -> str:
    count = count_params(experiment.model.table())
    mesh = f"{layout.shown} ({experiment.parallel.preset}), " if layout.mesh.size > 1 else ""
    return (
        f"{mesh}{count:,} parameters, {len(data.train):,} training and {len(data.validation):,} "
        f"validation tokens, {experiment.train.last_step:,} steps; run folder {folder.path}"
    )


def _summary(
    outcome: Outcome, lines: dict[str, dict[str, float]], folder: RunFolder
) -> dict[str, Any]:
    return {
        "run": str(folder.path),
        "step": outcome.step,
        "interrupted": outcome.interrupted,
        "validation": None if outcome.last is None else dataclasses.asdict(outcome.last),
        "baselines": lines,
        "tokens_per_second": round(outcome.tokens_per_second, 1),
    }


def _print_summary(outcome: Outcome, lines: dict[str, dict[str, float]], folder: RunFolder) -> None:
    rows = dict(lines)
    if outcome.last is not None:
        rows["this model"] = dataclasses.asdict(outcome.last)
    columns = {"loss": "{:.4f}", "perplexity": "{:,.2f}", "bits_per_byte": "{:.4f}"}
    table = TextTable("validation", *(name.replace("_", " ") for name in columns))
    for name, values in sorted(rows.items(), key=lambda row: -row[1]["loss"]):
        cells = [form.format(values[column]) for column, form in columns.items()]
        table.add_row(name, *cells, style="bold" if name == "this model" else None)
    print_table(table)
    if outcome.interrupted:
        print(f"stopped at step {outcome.step} and saved; continue with --resume")
    else:
        print(f"step {outcome.step}, {outcome.tokens_per_second:,.0f} tokens/s")
    print(f"curves in {folder.curves}")
    if folder.load.exists():
        print(f"load of experts in {folder.load}")
    print(f"next: {sys.executable.split('/')[-1]} -m experiments.sample --run={folder.path}")


if __name__ == "__main__":
    cli.run(main, define_flags)
