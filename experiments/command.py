"""The command `gam`: `gam train` is `python -m experiments.train`, wherever it is called.

A console script has no folder of yours on its path, so it finds this package also beside a folder
`experiments` of your own.
"""

from __future__ import annotations

import difflib
import pathlib
import runpy
import sys
from collections.abc import Sequence
from typing import NamedTuple

BAD_INPUT = 2


class Command(NamedTuple):
    """What runs, and one line about it.

    Attributes:
      module: run as `python -m` runs it.
      help: what it does.
    """

    module: str
    help: str


COMMANDS = {
    "train": Command("experiments.train", "train a model on data"),
    "evaluate": Command("experiments.evaluate", "score a trained run on data"),
    "sample": Command("experiments.sample", "write text with a trained run"),
    "serve": Command("experiments.serve", "answer requests of the OpenAI API with trained models"),
    "draft": Command("experiments.draft", "train what guesses ahead, for serving in fewer passes"),
    "data": Command("experiments.data", "rows of data as text, and which tokens count"),
    "checkpoint": Command("sharding.checkpoint", "look into checkpoints, compare, export, import"),
    "convert": Command("experiments.convert", "runs from and to Hugging Face model folders"),
    "grow": Command("experiments.grow", "a trained run made larger, with the function it had"),
    "shrink": Command("experiments.shrink", "a trained run made narrower, by what matters"),
    "extract": Command("experiments.extract", "the plain model that a run of mixed layers chose"),
    "search": Command("experiments.search", "a better configuration, found by training many"),
    "report": Command("experiments.report", "one page about several runs"),
    "tune": Command("experiments.tune", "the fastest scans, attention and blocks of this machine"),
    "launch": Command("experiments.launch", "run a command as several processes of this host"),
    "audit": Command("experiments.audit", "what a training step sends and holds on a mesh"),
    "plan": Command("experiments.plan", "which mesh for machines that need not be here"),
    "measure": Command("experiments.measure", "what this machine can do, as a profile to plan for"),
    "benchmark": Command("experiments.benchmark", "measure this machine"),
    "study": Command("experiments.study", "what papers claim, and what is seen of it here"),
    "compare": Command("experiments.compare", "architectures side by side on one text"),
    "recall": Command("experiments.recall", "how many pairs an architecture can remember"),
    "bam": Command("experiments.bam", "trained dense models made into one mixture"),
    "balance": Command("experiments.balance", "ways to give experts equal loads"),
    "digits": Command("experiments.digits", "handwritten digits, read by a classifier"),
    "parscale": Command("experiments.parscale", "what parallel streams are worth"),
}
"""Every command, in the order in which `gam` lists them."""


def main() -> None:
    """Runs the command that the first word names; lists them all where there is none."""
    words = sys.argv[1:]
    if not words or words[0] in ("--help", "-h", "help"):
        try:
            print(listing(), flush=True)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output has left
        return
    name = words[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0)[0]
        print(
            f"error: unknown command '{name}'; did you mean '{near}'? See gam --help",
            file=sys.stderr,
        )
        sys.exit(BAD_INPUT)
    del sys.argv[1]  # the command reads its own words alone
    runpy.run_module(COMMANDS[name].module, run_name="__main__", alter_sys=True)


def listing() -> str:
    """The table of commands."""
    wide = max(map(len, COMMANDS))
    rows = [f"  {name:<{wide}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: gam COMMAND [--flag=value ...]", "", *rows, "", "gam COMMAND --help says more."]
    )


def as_process(words: Sequence[str]) -> tuple[str, ...]:
    """A command line, with a first word `gam` replaced by what runs it.

    That is this interpreter and this file, so that a child runs the same code from any folder,
    and with no `gam` on its PATH.
    """
    if words[0] != "gam":
        return tuple(words)
    return sys.executable, "-P", str(pathlib.Path(__file__).resolve()), *words[1:]


if __name__ == "__main__":  # `as_process`: from a checkout, nothing else says where the package is
    root = str(pathlib.Path(__file__).resolve().parents[1])
    if root not in sys.path:
        sys.path.insert(0, root)
    main()
