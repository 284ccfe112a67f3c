"""Looks into checkpoints, compares them, and moves parameters in and out.

  gam checkpoint inspect RUN[@STEP] [--json] [--verify]
  gam checkpoint diff RUN[@STEP] RUN[@STEP] [--json] [--rtol=1e-5] [--only='*']
  gam checkpoint export RUN[@STEP] --to weights.safetensors
  gam checkpoint import weights.safetensors --run RUN

STEP is a number, latest (if not given), latest-good or best. Exit codes: 0; 1
where diff finds a difference or inspect --verify finds damage; 2 for bad input.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Table as TextTable

from sharding.bounds import NotNegative, check_number
from sharding.errors import UserError, one_line
from sharding.fault import shortage, tell_fault

DIFFERENT, BAD_INPUT, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code."""
    args = _parser().parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # looking needs no accelerator
    try:
        return args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left
        return 0
    except Exception as error:
        if line := shortage(error):
            print(f"error: {line}", file=sys.stderr)
            return BAD_INPUT
        return tell_fault(error)


def _inspect(args: argparse.Namespace) -> int:
    from sharding.checkpoint.inspect import inspect

    found = inspect(args.checkpoint, args.verify)
    if args.json:
        print(json.dumps(found))
    else:
        _print_steps(found)
        _print_arrays(found)
        if args.verify and not found["damaged"]:
            print("verified: every file and every array is as it was saved")
    for step, reasons in found.get("damaged", {}).items():
        for reason in reasons:
            print(f"checkpoint {step} is damaged: {reason}", file=sys.stderr)
    return DIFFERENT if found.get("damaged") else 0


def _diff(args: argparse.Namespace) -> int:
    from sharding.checkpoint.diff import diff

    check_number("--rtol", args.rtol, NotNegative)
    found = diff(args.a, args.b, args.rtol, args.only)
    if args.json:
        print(json.dumps(found))
    else:
        _print_diff(found)
    return 0 if found["equal"] else DIFFERENT


def _export(args: argparse.Namespace) -> int:
    from sharding.checkpoint.portable import export

    found = export(args.checkpoint, args.to)
    print(f"{found['arrays']} arrays of step {found['step']}, {found['bytes']:,} bytes: {args.to}")
    return 0


def _import(args: argparse.Namespace) -> int:
    from sharding.checkpoint.portable import load

    found = load(args.file, args.run_folder)
    files = f", {', '.join(found['files'])}" if found["files"] else ""
    print(f"{found['arrays']} arrays as step {found['step']}{files}: {args.run_folder}")
    return 0


def _print_steps(found: dict[str, Any]) -> None:
    table = _table("step", "bytes", "arrays", "validation loss", "")
    for row in found["steps"]:
        loss = row.get("loss")
        numbers = [f"{row[name]:,}" if name in row else "" for name in ("step", "bytes", "arrays")]
        table.add_row(*numbers, "" if loss is None else f"{loss:.4f}", escape(_note(row)))
    _console().print(found["folder"], table)


def _note(row: dict[str, Any]) -> str:
    """What is wrong with a checkpoint."""
    suspect = f"suspect: {row['suspect']}" if "suspect" in row else ""
    return row.get("damaged", suspect)


def _print_arrays(found: dict[str, Any]) -> None:
    table = _table(f"step {found['step']}", "shape", "dtype", "axes", "mean", "std")
    for row in found["arrays"]:
        axes = "" if row["axes"] is None else " ".join(axis or "-" for axis in row["axes"])
        shape = " ".join(map(str, row["shape"]))
        values = [f"{row[name]:.4g}" if name in row else "" for name in ("mean", "std")]
        table.add_row(escape(row["name"]), shape, row["dtype"], axes, *values)
    _console().print(table)
    for place, count in collections.Counter(
        row["in"] for row in found["arrays"] if "in" in row
    ).items():
        print(f"{count} of them stand in {place}")


def _print_diff(found: dict[str, Any]) -> None:
    table = _table("array", "elements", "of", "largest", "relative", "")
    for row in found["arrays"]:
        note = row.get("difference", "within --rtol" if row["within"] else "")
        numbers = [f"{row[name]:,}" if name in row else "" for name in ("elements", "of")]
        sizes = [f"{row[name]:.3g}" if name in row else "" for name in ("largest", "relative")]
        table.add_row(escape(row["name"]), *numbers, *sizes, escape(note))
    if found["arrays"]:
        _console().print(table)
    count, differ = found["compared"], len(found["arrays"])
    said = "bit for bit equal" if not differ else f"{differ} differ"
    within = f", within {found['rtol']:g}" if differ and found["equal"] else ""
    steps = f"step {found['a']['step']} and step {found['b']['step']}"
    print(f"{count} arrays compared of {steps}: {said}{within}")


def _table(*columns: str) -> TextTable:
    table = TextTable(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _console() -> Console:
    wide = None if sys.stdout.isatty() else 160
    return Console(highlight=False, soft_wrap=True, width=wide)


class _Parser(argparse.ArgumentParser):
    """Tells what it does not understand in one line, as all commands do."""

    def error(self, message: str) -> NoReturn:
        """Exits with the code of bad input."""
        print(f"error: {one_line(message)}; see {self.prog} --help", file=sys.stderr)
        sys.exit(BAD_INPUT)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "gam checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="inspect|diff|export|import")
    where = "folder of a run, with @STEP, @best or @latest"

    inspect = commands.add_parser("inspect", help="what a run's checkpoints hold")
    inspect.add_argument("checkpoint", metavar="RUN[@STEP]", help=where)
    inspect.add_argument("--verify", action="store_true", help="compare all with checksums")
    inspect.set_defaults(run=_inspect)

    diff = commands.add_parser("diff", help="where two checkpoints differ")
    diff.add_argument("a", metavar="RUN[@STEP]", help=where)
    diff.add_argument("b", metavar="RUN[@STEP]", help=where)
    diff.add_argument("--rtol", type=float, default=0.0, help="share of an array's largest value")
    diff.add_argument("--only", default="*", help="pattern of names, as 'params/*'")
    diff.set_defaults(run=_diff)

    export = commands.add_parser("export", help="parameters to a safetensors file")
    export.add_argument("checkpoint", metavar="RUN[@STEP]", help=where)
    export.add_argument("--to", type=pathlib.Path, required=True, help="the file")
    export.set_defaults(run=_export)

    load = commands.add_parser("import", help="a run of the parameters in a safetensors file")
    load.add_argument("file", type=pathlib.Path, help="the safetensors file")
    load.add_argument("--run", type=pathlib.Path, required=True, dest="run_folder", help="folder")
    load.set_defaults(run=_import)

    for command in (inspect, diff):
        command.add_argument("--json", action="store_true", help="one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
