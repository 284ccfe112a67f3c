"""Architectures side by side on one text: equal parameters, equal tokens, the same training.

  gam compare --data=text:shakespeare.txt
  gam compare --mixers=gam,written_gam --seeds=0,1,2
  gam compare --data=python_stdlib --steps=500 --json

Each architecture is a run of `experiments/configs/compare.py`, in a folder of its own below --out:
`gam evaluate` and `gam sample` open it, and an interrupted comparison goes on where
it stopped. All see the same windows in the same order. Prints a table and draws the losses beside
speed and state. Without --data: the source of Python's standard library. It is
`gam study run compare`, which reads tiny Shakespeare if nothing else is said.
"""

from __future__ import annotations

from experiments import cli
from experiments.papers.compare import STUDY
from experiments.study.command import define_study_flags, run_command


def define_flags() -> None:
    """The command line."""
    define_study_flags(arms="mixers", out="runs/compare", data="python_stdlib")


def main() -> None:
    """Trains the mixers that are named, or those that every table has."""
    run_command(STUDY, arms_flag="mixers")


if __name__ == "__main__":
    cli.run(main, define_flags)
