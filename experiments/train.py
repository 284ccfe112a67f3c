"""Trains a model on data, and shows what it learned beside baselines of the same data.

The default needs no download: a small GAM reads the source code of Python's standard library.

  gam train
  gam train --config=gam_paper --run=runs/paper
  gam train --run=runs/books --config.data.name=text:books/
  gam train --run=runs/books --resume
  gam train --run=runs/books --resume=200 --skip=10
  gam train --run=runs/new --init=runs/books@best --init-exclude='final_norm/*'
  gam train --init=hf:FOLDER --config.data.name=text:notes.txt
  gam train --run=runs/adapted --init=runs/books --adapt='mixer/*,ffn/*'
  gam train --emulate=8 --mesh=data=2,seq=2,tensor=2
  gam train --run=runs/traced --profile=10:3

Every field of the config file can be set with --config.a.b=value. A run is a folder:
config.json, history.jsonl, tokenizer.json, metrics.jsonl, checkpoints/, tensorboard/, curves.png.
Ctrl-C and SIGTERM save and leave; --resume continues the very same run. See docs/checkpoints.md.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import sys
from typing import Any

import jax
from absl import flags
from rich.table import Table as TextTable

from experiments import cli
from experiments.adapt import adapt_from_flags, define_adapter_flags
from experiments.config_flags import config_title, define_config_flag, experiment_from_flags
from experiments.curves import draw_curves
from experiments.devices import define_cache_flag, define_device_flags, layout_from_flags
from experiments.imported import Imported
from experiments.load_figure import draw_load
from experiments.origins import (
    define_origin_flags,
    folder_named,
    imported_from_flags,
    source_from_flags,
)
from experiments.show_config import shown
from experiments.tables import print_table
from gam_jax.models import LanguageModel
from gam_jax.training.beginning import BEST, LATEST, LATEST_GOOD, Beginning
from gam_jax.training.checks import refusal
from gam_jax.training.experiment import Experiment
from gam_jax.training.fit import Fitted, check_beginning, fit, opened, summary
from gam_jax.training.folder import RunFolder
from gam_jax.training.heartbeat import Heartbeat
from gam_jax.training.metrics import read_metrics
from gam_jax.training.profile import Span
from gam_jax.training.progress import shown_score
from sharding import processes
from sharding.errors import UserError
from sharding.fault import reason
from sharding.replan import Plan, replan

HIDDEN = {"text_bytes"}
"""What baselines tell besides scores."""


def define_flags() -> None:
    """The command line."""
    define_config_flag()
    cli.define_path("run", None, "Run folder; runs/<name of the config> if not given.")
    flags.DEFINE_flag(
        flags.Flag(
            _Resume(),
            flags.ArgumentSerializer(),
            "resume",
            None,
            "Continue the run, or start it where there is none yet. --resume=latest-good goes on "
            "from the newest checkpoint that is whole and not suspect, --resume=best from the one "
            "of least validation loss, --resume=STEP from that one, 0 being the start; what came "
            "after it is put aside.",
            boolean=True,
        )
    )
    flags.DEFINE_list(
        "change",
        [],
        "With --resume: fields that may differ from the run's own, as "
        "train.steps,optimizer.learning_rate; --config.train.steps=N gives the value.",
    )
    flags.DEFINE_integer(
        "skip",
        None,
        "With --resume: pass over that many batches. Where it is not given, those that the last "
        "start from that checkpoint passed over are passed over again.",
        0,
        2**31 - 1,
    )
    define_origin_flags()
    define_adapter_flags()
    flags.DEFINE_integer(
        "unfinished_code",
        0,
        "Exit code of a run that was asked to stop before its end, and has saved. 75 tells "
        "experiments/pods to go on with it.",
        0,
        255,
    )
    flags.DEFINE_bool("json", False, "Print the summary as one JSON object on standard output.")
    flags.DEFINE_bool(
        "show_config", False, "Train nothing: print each field of the config, and what it means."
    )
    flags.DEFINE_string(
        "plan",
        "",
        "Train nothing: print, as JSON, the mesh to go on with where that many processes x "
        "devices of each are left, as 2x4. --mesh is what was wanted.",
    )
    flags.DEFINE_string(
        "profile",
        "",
        "STEP:COUNT: trace so many steps from that one on, into profile/ of the run folder.",
    )
    define_device_flags()
    define_cache_flag()


class _Resume(flags.ArgumentParser):
    """None, or the checkpoint to go on from. --resume alone says the latest."""

    syntactic_help = "latest, latest-good, best or a step"

    def parse(self, argument: Any) -> str | None:
        """The choice that a word stands for."""
        words = {"true": LATEST, "false": None}
        word = str(argument).lower() if isinstance(argument, bool) else str(argument)
        if word in (LATEST, LATEST_GOOD, BEST) or re.fullmatch(r"[0-9]{1,18}", word):
            return word if word in (LATEST, LATEST_GOOD, BEST) else str(int(word))
        if word not in words:
            raise ValueError(f"say {self.syntactic_help}")
        return words[word]

    def flag_type(self) -> str:
        """Its name in --help."""
        return "checkpoint"


def main() -> None:
    """Checks everything that can be checked, then trains."""
    folder = _run_folder()
    resume = flags.FLAGS.resume is not None
    imported = imported_from_flags(folder, resume)
    goes_on = resume and (imported is None or folder.ran())
    saved = folder.saved_config() if goes_on else None
    experiment = experiment_from_flags(saved, None if goes_on else imported)
    experiment = adapt_from_flags(experiment)
    if flags.FLAGS.show_config:
        print(shown(experiment))
        return
    if not resume:
        folder.check_new()
    profile = Span.parse(flags.FLAGS.profile) if flags.FLAGS.profile else None
    beginning = _beginning(folder, resume, imported)
    check_beginning(experiment, folder, beginning, resume, resume and folder.ran())
    if flags.FLAGS.plan:
        print(json.dumps(dataclasses.asdict(_plan(experiment, saved, beginning))))
        return
    with Heartbeat.from_environment() as heartbeat:
        layout = layout_from_flags(experiment.parallel)
        heartbeat.has(jax.local_device_count())
        fitted = fit(
            experiment,
            run=folder.path,
            layout=layout,
            resume=resume,
            beginning=beginning,
            heartbeat=heartbeat,
            profile=profile,
        )
    if processes.is_first():
        _tell(fitted)
    if fitted.outcome.interrupted:
        sys.exit(flags.FLAGS.unfinished_code)


def _tell(fitted: Fitted) -> None:
    """Pictures and a summary of a run, for the person who started it."""
    folder = fitted.folder
    losses = {name: values["loss"] for name, values in fitted.baselines.items()}
    rows = read_metrics(folder.metrics)
    try:
        draw_curves(rows, losses, folder.curves)
        draw_load(rows, folder.load)
    except (OSError, UserError) as error:  # the run is done and saved all the same
        print(f"no picture of the run in {folder.path}: {reason(error)}", file=sys.stderr)
    if flags.FLAGS.json:
        print(json.dumps(summary(fitted)))
    else:
        _print_summary(fitted)


def _plan(experiment: Experiment, saved: dict[str, Any] | None, beginning: Beginning) -> Plan:
    """The mesh for the devices that --plan names."""
    count, times, devices = flags.FLAGS.plan.partition("x")
    if not (times and count.isdecimal() and devices.isdecimal()):
        raise UserError(f"--plan={flags.FLAGS.plan}: write processes x devices of each, as 2x4")
    if saved is None:  # else the model is fitted to its data
        origin = beginning.source
        files = None if origin is None else origin.files(experiment.data)
        experiment, _ = opened(experiment, None, files)
    if total := int(count) * int(devices):  # else `replan` says that none are left
        processes.emulate(total)
    return replan(
        flags.FLAGS.mesh, int(count), int(devices), lambda sizes: refusal(experiment, sizes)
    )


def _run_folder() -> RunFolder:
    name = flags.FLAGS.run
    if not name:
        source = folder_named()
        name = pathlib.Path("runs") / (config_title() if source is None else source.resolve().name)
    return RunFolder(pathlib.Path(name))


def _beginning(folder: RunFolder, resume: bool, imported: Imported | None) -> Beginning:
    """What --resume and --init ask for; a UserError where they do not go together."""
    args = flags.FLAGS
    source = imported or source_from_flags(folder, resume)
    return Beginning(args.resume or LATEST, source, change=tuple(args.change), skip=args.skip)


def _print_summary(fitted: Fitted) -> None:
    outcome, folder, rows = fitted.outcome, fitted.folder, dict(fitted.baselines)
    unit = "units"
    if outcome.last is not None:
        rows["this model"] = outcome.last.values
        unit = outcome.last.unit
    columns = list(dict.fromkeys(name for values in rows.values() for name in values))
    columns = [name for name in columns if name not in HIDDEN]
    table = TextTable("validation", *(name.replace("_", " ") for name in columns))
    for name, values in sorted(rows.items(), key=lambda row: -row[1]["loss"]):
        cells = [shown_score(c, values[c]) if c in values else "" for c in columns]
        table.add_row(name, *cells, style="bold" if name == "this model" else None)
    print_table(table)
    if outcome.interrupted:
        print(f"stopped at step {outcome.step} and saved; continue with --resume")
    else:
        print(f"step {outcome.step}, {outcome.per_second:,.0f} {unit}/s")
    if folder.curves.exists():
        print(f"curves in {folder.curves}")
    if folder.load.exists():
        print(f"load of experts in {folder.load}")
    if isinstance(fitted.experiment.model, LanguageModel):
        print(f"next: gam sample --run={folder.path}")


if __name__ == "__main__":
    cli.run(main, define_flags)
