"""Makes one page of runs: what differs, curves, figures, what a loss costs.

  gam report runs/*
  gam report runs --out=report.html
  gam report runs/a runs/b --markdown --out=-

A folder that holds run folders stands for all of them. The page needs nothing else: no network, no
script; it is read on a phone as on a desk. --markdown writes the tables as Markdown. A run that
still trains is shown as far as it is.
"""

from __future__ import annotations

import pathlib
import shlex
import sys

from absl import flags

from experiments import cli
from experiments.config_flags import define_classes_flag, register_classes
from experiments.report.markdown import markdown
from experiments.report.page import page
from experiments.report.runs import read_runs
from sharding.whole_file import check_place, write_named


def define_flags() -> None:
    """The command line."""
    define_classes_flag()
    cli.define_path("out", None, "File to write; report.html or report.md if not given, - prints.")
    flags.DEFINE_bool("markdown", False, "Write Markdown, not HTML.")


def main(*folders: str) -> None:
    """Reads the runs, then writes the report."""
    args = flags.FLAGS
    register_classes()
    out = pathlib.Path(args.out or ("report.md" if args.markdown else "report.html"))
    if args.out != "-":
        check_place(out, "--out")
    runs = read_runs(folders)
    command = shlex.join(["gam", "report", *folders])
    text = markdown(runs, f"{command} --markdown") if args.markdown else page(runs, command)
    if args.out == "-":
        sys.stdout.write(text)
        return
    write_named(out, text, "--out")
    print(f"{len(runs)} run{'s' if len(runs) > 1 else ''} in {out} ({out.stat().st_size:,} bytes)")


if __name__ == "__main__":
    cli.run(main, define_flags, takes="run folders, as in runs/*")
