"""Classifies scikit-learn's 8 x 8 digits, beside a linear model.

  gam digits                              MHS of four routes
  gam digits --mixer=raster,mhs,gru       several, one after another
  gam digits --seeds=0,1,2

The data are inside scikit-learn: pip install 'gam_jax[digits]'. It is `gam study run digits`.
"""

from __future__ import annotations

from experiments import cli
from experiments.papers.digits import STUDY
from experiments.study.command import define_study_flags, run_command


def define_flags() -> None:
    """The command line."""
    define_study_flags(arms="mixer", out="runs/digits")


def main() -> None:
    """Trains the mixers that are named, or all."""
    run_command(STUDY, arms_flag="mixer")


if __name__ == "__main__":
    cli.run(main, define_flags)
