"""Trains what guesses how a run's texts go on, so that they are served in fewer passes.

  gam draft units --run=runs/gam_small       # the run learns to look ahead
  gam serve --run=runs/gam_small-units --draft=units
  gam draft semi --run=runs/gam_small        # a small network beside the run
  gam serve --run=runs/gam_small --draft=semi:runs/gam_small-semi

Both train on the run's own data, with its batch and optimizer unless flags say otherwise, into a
run folder: --resume goes on with one that was stopped. Guesses change no text that is served, see
docs/drafts.md.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from experiments import cli
from experiments.config_flags import define_classes_flag, register_classes
from experiments.devices import define_cache_flag, define_device_flags, layout_from_flags
from experiments.drafting import beside, semi_of, units_of
from experiments.writer import TextRun
from gam_jax.models.units import LexicalUnits
from gam_jax.params import Params
from gam_jax.serve.rejection import tokens_a_pass
from gam_jax.training.beginning import Beginning
from gam_jax.training.experiment import Experiment
from gam_jax.training.fit import Fitted, check_beginning, fit, summary
from gam_jax.training.folder import RunFolder, load_params
from gam_jax.training.metrics import points, read_metrics
from gam_jax.training.warm_start import Source
from sharding import processes
from sharding.layout import Layout
from sharding.paths import local_path

UNITS, SEMI = "units", "semi"
GUESSES = 15
"""Of a whole block, as `gam serve` has it unless told otherwise."""
LAST = 10
"""Lines of a log at its end that an average is taken of."""
OWN = {UNITS: ("sure", "accept"), SEMI: ("glance",)}
"""Flags that are fields of the one model or the other."""


def define_flags() -> None:
    """The command line."""
    define_classes_flag()
    cli.define_path("run", "runs/gam_small", "Run folder of the model that is guessed for.")
    cli.define_path("out", "", "Folder of the new run; RUN-units or RUN-semi if empty.")
    flags.DEFINE_string("checkpoint", "latest", "Of --run: latest, latest-good, best, or a step.")
    flags.DEFINE_bool("resume", False, "Go on with the run in --out, or begin it.")
    flags.DEFINE_integer("ahead", 4, "Tokens that are told at once.", 1, 64)
    flags.DEFINE_integer("steps", 1000, "Updates.", 2, 2**31 - 1)
    flags.DEFINE_integer("batch", 0, "Windows in an update; the run's own if 0.", 0, 2**31 - 1)
    flags.DEFINE_float("learning_rate", 0.0, "The highest; by the run's own if 0.", 0.0)
    flags.DEFINE_float("sure", 0.7, "units: from which probability a token is of one.", 0, 1)
    flags.DEFINE_float("accept", 0.5, "units: from which probability it is guessed.", 0, 1)
    flags.DEFINE_float("glance", 0.4, "semi: the part of errors that is shown at first.", 0, 1)
    flags.DEFINE_bool("json", False, "Print the summary as one JSON object on standard output.")
    define_device_flags()
    define_cache_flag()


def main(kind: str) -> None:
    """Looks at everything that was asked for, then trains."""
    args = flags.FLAGS
    register_classes()
    run = TextRun.open(args.run)
    experiment = (units_of if kind == UNITS else semi_of)(run.experiment, args.ahead, args.steps)
    experiment = _asked(experiment, {name: getattr(args, name) for name in OWN[kind]})
    out = RunFolder(local_path(args.out or f"{run.folder.path}-{kind}"))
    layout = layout_from_flags(experiment.parallel)
    experiment.model.check_mesh(layout)
    beginning = _beginning(kind, run, experiment, layout)
    check_beginning(experiment, out, beginning, args.resume, args.resume and out.ran())
    data = experiment.data.open(run.folder.kept(experiment.data))
    fitted = fit(
        experiment, data, run=out.path, layout=layout, resume=args.resume, beginning=beginning
    )
    if processes.is_first():
        _tell(fitted, kind, run)


def _asked(experiment: Experiment, fields: dict[str, Any]) -> Experiment:
    """The experiment with what the flags change of it."""
    args = flags.FLAGS
    model: Any = dataclasses.replace(experiment.model, **fields)  # type: ignore[arg-type]
    train, optimizer = experiment.train, experiment.optimizer
    if args.batch:
        train = dataclasses.replace(train, batch=args.batch, accumulate=1)
    if args.learning_rate:
        optimizer = dataclasses.replace(optimizer, learning_rate=args.learning_rate)
    return dataclasses.replace(experiment, model=model, train=train, optimizer=optimizer)


def _beginning(kind: str, run: TextRun, experiment: Experiment, layout: Layout) -> Beginning:
    """From the run's parameters."""
    which = flags.FLAGS.checkpoint
    source = Source(run.folder, which)
    source.open()[0].close()
    if kind == UNITS:
        return Beginning(source=source)

    def params() -> Params:
        return beside(experiment, load_params(run.folder, run.experiment, layout, which)[1])

    return Beginning(params=params)


def _tell(fitted: Fitted, kind: str, run: TextRun) -> None:
    outcome, out = fitted.outcome, fitted.folder.path
    if flags.FLAGS.json:
        print(json.dumps(summary(fitted)))
        return
    if outcome.interrupted:
        print(f"stopped at step {outcome.step} and saved; continue with --resume")
        return
    served = (
        f"--run={out} --draft={UNITS}"
        if kind == UNITS
        else (f"--run={run.folder.path} --draft={SEMI}:{out}")
    )
    rows = read_metrics(fitted.folder.metrics)
    model = fitted.experiment.model
    line = of_units(rows, model.unit - 1) if isinstance(model, LexicalUnits) else of_drafter(rows)
    if line:
        print(line)
    print(f"step {outcome.step}; next: gam serve {served}")


def of_drafter(rows: Sequence[Mapping[str, Any]]) -> str:
    """How often a drafter has told the likeliest token, and the ideal of it; empty if never."""
    told = [share for _, share in points(rows, "train", "agreed")][-LAST:]
    if not told:
        return ""
    agreed = sum(told) / len(told)
    return f"it told {agreed:.3f} of the likeliest tokens at the end: {_ideal(agreed, GUESSES)}"


def of_units(rows: Sequence[Mapping[str, Any]], guesses: int) -> str:
    """Tokens a pass of the last validation, and the ideal of them; empty if there was none.

    Args:
      rows: of the run's metrics.
      guesses: placeholders of a pass.
    """
    told = points(rows, "validation", "tokens_a_pass")
    if not told:
        return ""
    step, tokens = told[-1]
    line = f"on the text of the validation {tokens:.2f} tokens a pass"
    share = dict(points(rows, "validation", "agreed")).get(step)
    if share is None:
        return f"{line}: no placeholder was sure enough of a token to guess it (--accept)"
    return f"{line}, {share:.3f} of the guesses stood: {_ideal(share, guesses)}"


def _ideal(share: float, guesses: int) -> str:
    return (
        f"{tokens_a_pass(share, guesses):.2f} tokens a pass are the ideal of {guesses} guesses "
        f"that stand as often"
    )


if __name__ == "__main__":
    cli.run(main, define_flags, choices=(UNITS, SEMI))
