"""Parallel scaling streams: what they bring, by law and by stage, and what they cost.

  gam parscale law                      small models of 1, 2, 4, 8 streams
  gam parscale law --mixer=transformer --seeds=0,1,2 --data=text:books/
  gam parscale law --published          the paper's tables, fitted anew
  gam parscale stages --seeds=0,1,2     trained models go on with more streams
  gam parscale cost                     memory and time, by model and measured

Each run of law and stages has a folder below --out, which evaluate and sample open; a finished one
is only read, and the same command goes on where it was stopped. They are groups of
`gam study run parscale`.
"""

from __future__ import annotations

from absl import flags

from experiments import cli
from experiments.contenders import CONTENDERS, chosen
from experiments.papers.parscale import law, published
from experiments.papers.parscale.study import RATES, Options, study_of
from experiments.study import Study
from experiments.study.command import define_study_flags, run_command
from sharding.errors import UserError


def define_flags() -> None:
    """The command line."""
    define_study_flags(out="runs/parscale")
    flags.DEFINE_bool("published", False, "law: fit the tables that the paper published.")
    flags.DEFINE_string("mixer", "gam", f"One of {','.join(CONTENDERS)}.")
    flags.DEFINE_list("sizes", ["32", "48", "64"], "law, stages: widths; of stages the first.")
    flags.DEFINE_list("streams", ["1", "2", "4", "8"], "Numbers of parallel streams.")
    flags.DEFINE_integer("second", 250, "stages: updates of the second stage.", 1)
    flags.DEFINE_multi_enum("stage", list(RATES), list(RATES), "stages: what trains.")


def main(which: str) -> None:
    """One of the three."""
    study, group = _study(), "published" if flags.FLAGS.published else which
    flags.FLAGS.steps = 0  # they are the study's own now
    if group == "cost" and not flags.FLAGS.json:
        run_command(study, "model")
        run_command(study, "here")
        return
    found = run_command(study, group)
    if flags.FLAGS.json:
        return
    if group == "published":
        for corpus, paper in published.COEFFICIENTS.items():
            law.print_fits(corpus, law.fits(published.runs(corpus)), paper)
    elif group == "law" and law.enough(runs := law.runs_of(found), found):
        law.print_fits("laws of these runs", law.fits(runs))


def _study() -> Study:
    """The study with the runs that the flags ask for."""
    args = flags.FLAGS
    mixers = list(chosen(args.mixer))
    if len(mixers) != 1:
        raise UserError(f"--mixer={args.mixer}: give one of {', '.join(CONTENDERS)}")
    widths = _numbers("sizes")
    options = Options(
        widths=widths,
        streams=_numbers("streams"),
        mixer=mixers[0],
        steps=args.steps,
        second=args.second,
        stages=tuple(dict.fromkeys(args.stage)),
        stage_width=widths[0],
    )
    return study_of(options)


def _numbers(flag: str) -> tuple[int, ...]:
    try:
        found = sorted({int(value) for value in getattr(flags.FLAGS, flag)})
    except ValueError as error:
        raise UserError(f"--{flag}: {error}: give whole numbers, as 1,2") from error
    if not found or found[0] < 1:
        raise UserError(f"--{flag}: give at least one, none below 1, as 1,2")
    return tuple(found)


if __name__ == "__main__":
    cli.run(main, define_flags, choices=("law", "stages", "cost"))
