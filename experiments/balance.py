"""Do experts stay in balance, and what does it cost? The same run without, with loss, with bias.

  gam balance
  gam balance --steps=300 --seeds=0,1,2 --json

Each is a run of `experiments/configs/moe_small.py` in a folder below --out, which holds its
load.png; an interrupted one goes on where it stopped. Prints, of the last tenth of the steps,
how far loads are from even, and the validation loss. It is `gam study run balance`.
"""

from __future__ import annotations

from experiments import cli
from experiments.papers.balance import STUDY
from experiments.study.command import define_study_flags, run_command


def define_flags() -> None:
    """The command line."""
    define_study_flags(out="runs/balance")


def main() -> None:
    """Trains each way of balancing."""
    run_command(STUDY)


if __name__ == "__main__":
    cli.run(main, define_flags)
