"""Three specialists and their seed, upcycled into one mixture by BAM and by its rival, trained on.

  gam bam
  gam bam --seeds=0,1,2
  gam bam --scale=short --json

A dense model is trained on three domains of text that are on this machine (Python, English, C), a
copy of it on each alone; then the four become experts of one model by three recipes: "btx"
(feed-forwards alone, Branch-Train-MiX), "bam" (attention too) and "bam_shared" (with shared keys
and values). Each mixture is trained on all domains: as many tokens as "btx", and again as many
operations. Prints losses on held-out text of each domain. Each arm is a run folder below --out, so
the same command goes on where it was stopped. It is `gam study run bam`.
"""

from __future__ import annotations

from experiments import cli
from experiments.papers.bam import STUDY
from experiments.study.command import define_study_flags, run_command


def define_flags() -> None:
    """The command line."""
    define_study_flags(out="runs/bam")


def main() -> None:
    """Runs the recipe from each seed, and prints the losses with their spread."""
    run_command(STUDY, scales=lambda name: {"default": "cpu"}.get(name, name))


if __name__ == "__main__":
    cli.run(main, define_flags)
