"""Multi-query associative recall: who remembers what was written, by mixer and number of pairs.

  gam recall
  gam recall --scale=short --mixers=gam,written_gam
  gam recall --scale=long --mixers=wide_written_gam

Every mixer is trained on the same sequences, at equal width, in the same block and with the same
optimizer, until it answers 99.9 % of the hardest questions or its steps are over. Prints the share
of questions answered rightly, and draws it. It is `gam study run recall`.
"""

from __future__ import annotations

from absl import flags

from experiments import cli
from experiments.papers.recall import STUDY
from experiments.study.command import define_study_flags, run_command
from experiments.study.declare import CPU

DEFAULT = "default"
"""Another name of the scale for a laptop."""


def define_flags() -> None:
    """The command line."""
    define_study_flags(arms="mixers", out="runs/recall", scale=DEFAULT)
    flags.DEFINE_alias("seed", "seeds")


def main() -> None:
    """Trains the mixers that are named, or those that every table has."""
    run_command(STUDY, arms_flag="mixers", scales=lambda name: CPU if name == DEFAULT else name)


if __name__ == "__main__":
    cli.run(main, define_flags)
