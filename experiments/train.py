"""Trains a language model on text, and shows what it learned beside baselines of the same text.

The default needs no download: a small GAM reads the source code of Python's standard library.

  python -m experiments.train
  python -m experiments.train --config=experiments/configs/gam_paper.py --run=runs/paper
  python -m experiments.train --run=runs/books --config.data.name=text:books/
  python -m experiments.train --run=runs/books --resume
  python -m experiments.train --emulate=8 --mesh=data=2,seq=2,tensor=2

Every field of the config file can be set with --config.a.b=value. A run is a folder:
config.json, tokenizer.json, metrics.jsonl, checkpoints/, tensorboard/, curves.png. Ctrl-C and
SIGTERM save and leave; --resume continues the very same run.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.config import Experiment, define_config_flag, experiment_from_flags
from experiments.curves import draw_curves
from experiments.devices import define_device_flags, layout_from_flags
from experiments.fit import check_batch, check_fits
from experiments.loop import Outcome, train
from experiments.metrics import read_metrics
from experiments.progress import Progress
from experiments.run import RunFolder, write_atomically
from gam_jax.data import TextData, load
from gam_jax.data.baselines import baselines
from gam_jax.params import count_params
from sharding import processes
from sharding.errors import UserError
from sharding.layout import Layout


def define_flags() -> None:
    """The command line."""
    define_config_flag()
    flags.DEFINE_string("run", None, "Run folder; runs/<name of the config> if not given.")
    flags.DEFINE_bool("resume", False, "Continue the run, or start it where there is none yet.")
    flags.DEFINE_bool("json", False, "Print the summary as one JSON object on standard output.")
    define_device_flags()


def main() -> None:
    """Checks everything that can be checked, then trains."""
    folder = _run_folder()
    saved = folder.saved_config() if flags.FLAGS.resume else None
    if saved is None:
        folder.check_new()
    experiment = experiment_from_flags(saved)
    layout = layout_from_flags(experiment.parallel)
    check_batch(experiment, layout)
    progress = Progress(experiment.train.batch * experiment.data.window, processes.is_first())

    progress.say(f"reading {experiment.data.name}")
    data = load(experiment.data, None if saved is None else folder.load_tokenizer())
    experiment, data = fit_to_data(experiment, data)
    check_fits(experiment, layout)
    if saved is not None:
        folder.check_same(experiment)
    elif processes.is_first():
        folder.start(experiment, data.tokenizer)
    processes.barrier("run folder")
    lines = baselines_of(data)
    if processes.is_first():
        write_atomically(folder.baselines, json.dumps(lines, indent=2) + "\n")
    progress.say(_describe(experiment, data, folder, layout))
    outcome = train(experiment, data, folder, layout, progress)
    if not processes.is_first():
        return

    losses = {name: values["loss"] for name, values in lines.items()}
    draw_curves(read_metrics(folder.metrics), losses, folder.curves)
    if flags.FLAGS.json:
        print(json.dumps(_summary(outcome, lines, folder)))
    else:
        _print_summary(outcome, lines, folder)


def fit_to_data(experiment: Experiment, data: TextData) -> tuple[Experiment, TextData]:
    """The experiment with the tokenizer's vocabulary; the data with the validation cut.

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
    return dataclasses.replace(experiment, model=dataclasses.replace(model, vocab=vocab)), data


def baselines_of(data: TextData) -> dict[str, dict[str, float]]:
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


def _describe(experiment: Experiment, data: TextData, folder: RunFolder, layout: Layout) -> str:
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
    table = Table("validation", *(name.replace("_", " ") for name in columns))
    for name, values in sorted(rows.items(), key=lambda row: -row[1]["loss"]):
        cells = [form.format(values[column]) for column, form in columns.items()]
        table.add_row(name, *cells, style="bold" if name == "this model" else None)
    Console().print(table)
    if outcome.interrupted:
        print(f"stopped at step {outcome.step} and saved; continue with --resume")
    else:
        print(f"step {outcome.step}, {outcome.tokens_per_second:,.0f} tokens/s")
    print(f"curves in {folder.curves}")
    print(f"next: {sys.executable.split('/')[-1]} -m experiments.sample --run={folder.path}")


if __name__ == "__main__":
    cli.run(main, define_flags)
