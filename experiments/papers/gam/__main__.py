"""The tables of the GAM paper (arXiv 2509.00605), ours beside the published.

  python -m experiments.papers.gam table1        GAM, Transformer, Mamba: loss and time
  python -m experiments.papers.gam table2        time and memory of a block by length
  python -m experiments.papers.gam table3        the ablations
  python -m experiments.papers.gam perplexity    why the perplexities are so high; a better recipe
  python -m experiments.papers.gam stories       Table 1 on TinyStories
  python -m experiments.papers.gam table1 --data=text:wikitext/ --seeds=0,1,2
  python -m experiments.papers.gam table1 --scale=paper     the published sizes, for an accelerator

The same code at each size: cpu takes minutes and reads what is on the machine; paper downloads
WikiText-2 and TinyStories. Each trial is a run folder below --out, shared by the tables: what is
trained is only read again, and a command that was stopped goes on. Prints the published figures
beside ours, and which claims hold. They are groups of `gam study run gam`.
"""

from __future__ import annotations

import re

from absl import flags

from experiments import cli
from experiments.papers.gam.protocol import SCALES
from experiments.papers.gam.study import STUDY, study_of
from experiments.study.command import define_study_flags, run_command
from sharding.errors import UserError

TABLES = ("table1", "table2", "table3", "perplexity", "stories")


def define_flags() -> None:
    """The command line."""
    define_study_flags(out="runs/papers/gam")
    flags.DEFINE_list("lengths", None, "table2: tokens; else the scale's own.")


def main(which: str) -> None:
    """Trains or times what a table holds, and prints it."""
    args = flags.FLAGS
    if args.data:  # each text has runs of its own
        args.out = f"{args.out}/{_slug(args.data)}"
    run_command(study_of(_lengths()) if which == "table2" else STUDY, which)


def _lengths() -> tuple[int, ...]:
    args = flags.FLAGS
    if not args.lengths:
        return SCALES.get(args.scale, SCALES["cpu"]).lengths
    if not all(number.isdigit() and int(number) for number in args.lengths):
        raise UserError(f"--lengths={','.join(args.lengths)}: give tokens, as 256,1024")
    return tuple(map(int, args.lengths))


def _slug(name: str) -> str:
    """A name of a folder for a data set."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[-60:] or "text"


if __name__ == "__main__":
    cli.run(main, define_flags, choices=TABLES)
