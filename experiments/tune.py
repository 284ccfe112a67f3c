"""Finds the fastest way to compute scans, attention, experts and blocks on this machine.

  gam tune --config=mine.py --mesh=data=4 --out=tuned.json    the ops of a run
  gam tune --ops=delta:head --tokens=4096 --heads=8 --size=32
  gam tune --topology=v5e:2x2      what a TPU's compiler refuses; runs nothing

Ways that do not build, do not compile or are not equal to the plainest one are out before anything
is timed; those left take turns. The file is used where a config names it: see docs/tuning.md.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import textwrap
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import config_flags
from rich.table import Table as TextTable

from experiments import cli
from experiments.config_flags import define_config_flag, experiment_from_flags
from experiments.devices import join_devices, say_where
from experiments.tables import print_table
from experiments.tuning import (
    Case,
    Tuned,
    Way,
    blocks_case,
    cases_of,
    op_case,
    plain_blocks,
    tune,
)
from gam_jax.config import unknown
from gam_jax.planning.targets import topology
from gam_jax.training.experiment import Experiment
from gam_jax.tuned import Entry, as_it_is, device_name, read_tuned
from gam_jax.tuning.ops import Op, Sizes
from gam_jax.tuning.table import BLOCKS, TUNABLE, ops_of, part_of
from sharding.errors import UserError
from sharding.whole_file import check_place, write_named

DTYPES = ("float32", "bfloat16")
OPS = (*(word for one in TUNABLE.values() for word in one.examples), BLOCKS)
"""Examples of each tunable op, and a stack of blocks."""
WHY = 160
"""Letters of a compiler's refusal that are shown; --json has all."""
SIZES = ("ops", "rows", "tokens", "heads", "size", "values", "depth", "dtype")
"""Flags that say what a run would say."""


def define_flags() -> None:
    """The command line."""
    define_config_flag()
    flag: Any = flags.FLAGS["config"]
    flag.parser = _AsItIs(flag.parser)
    flags.DEFINE_string("mesh", "", "Of the run, as data=2,tensor=2: a device has its part.")
    flags.DEFINE_list("ops", list(OPS), "What is tuned, where no run is given.")
    flags.DEFINE_integer("rows", 1, "Sequences.", 1)
    flags.DEFINE_integer("tokens", 1024, "Of a sequence.", 1)
    flags.DEFINE_integer("heads", 4, "Of scans and attention.", 1)
    flags.DEFINE_integer("size", 32, "Of a head; all else is heads x size wide.", 1)
    flags.DEFINE_integer("values", 0, "Size of values in scans; 0 for --size.", 0)
    flags.DEFINE_integer("depth", 4, "Of the stack of blocks.", 1)
    flags.DEFINE_enum("dtype", "float32", DTYPES, "Of what ops are given.")
    flags.DEFINE_integer("repeats", 9, "Turns of what is timed.", 3)
    flags.DEFINE_string("topology", "", "Compile for it, as v5e:2x2 or h100:1x1; nothing is run.")
    cli.define_path("out", "", "File that entries are added to.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    flags.DEFINE_integer("emulate", 0, "Run on that many emulated CPU devices.", 0)


class _AsItIs(flags.ArgumentParser):
    """Opens a config as it is without what was found before: see `gam_jax.tuned.with_tuned`."""

    def __init__(self, by_name: flags.ArgumentParser) -> None:
        self._by_name = by_name

    def parse(self, argument: str) -> Any:
        """What `get_config()` of it returns."""
        with as_it_is():
            return self._by_name.parse(argument)

    def flag_type(self) -> str:
        """That of the parser within."""
        return self._by_name.flag_type()


def main() -> None:
    """Tunes, prints, and writes."""
    args = flags.FLAGS
    _check_ops(args.ops)
    if args.topology and args.out:
        raise UserError("--topology runs nothing, so there is nothing to write: leave --out out")
    out = pathlib.Path(args.out) if args.out else None
    old, run = _old(out), _run()
    machine = topology(args.topology) if args.topology else None
    if machine is None:
        join_devices()
        say_where(1)
    found: list[tuple[Case, Tuned]] = []
    for case in _cases(run, None if machine is None else machine.backend):
        found.append((case, tune(case, args.repeats, machine)))
        if not args.json:
            _print(*found[-1])
        if out is not None:  # after each, so that what was found stays if the next is stopped
            _write(out, old, found)
    if args.json:
        print(json.dumps([_told(case, tuned) for case, tuned in found]))


def _check_ops(names: list[str]) -> None:
    if not names:
        raise UserError(f"--ops is empty: give some of {', '.join(OPS)}")
    for name in names:
        if name not in OPS:
            raise UserError(f"--ops: {unknown(name, OPS, 'op')}")
        if names.count(name) > 1:
            raise UserError(f"--ops: '{name}' is there twice, give it once")


def _old(out: pathlib.Path | None) -> list[Entry]:
    """The entries that are in the file already."""
    if out is None:
        return []
    check_place(out, "--out")
    return read_tuned(out) if out.exists() else []


def _write(out: pathlib.Path, old: list[Entry], found: list[tuple[Case, Tuned]]) -> None:
    entries = [_entry(*each) for each in found if each[1].of(each[1].best).seconds]
    keys = {each.key for each in entries}
    kept = [each for each in old if each.key not in keys]
    every = [dataclasses.asdict(each) for each in (*kept, *entries)]
    write_named(out, json.dumps({"entries": every}, indent=2) + "\n", "--out")


def _run() -> Experiment | None:
    """The run that --config gives; None where sizes say what is tuned."""
    args, flag = flags.FLAGS, flags.FLAGS["config"]
    if flag.using_default_value and not config_flags.get_override_values(flag):
        if args.mesh:
            raise UserError("--mesh is that of a run: give --config too")
        return None
    if given := [name for name in SIZES if args[name].present]:
        raise UserError(f"--{given[0]} is what the run says already: leave it out, or --config")
    return experiment_from_flags()


def _cases(run: Experiment | None, backend: str | None) -> Iterator[Case]:
    """Those of a run, each once; or of sizes."""
    args = flags.FLAGS
    if run is None:
        yield from (_plain(name, backend) for name in args.ops)
        return
    found = cases_of([*ops_of(run, part_of(run, args.mesh))], run.model, backend)  # type: ignore[arg-type]
    if not found:
        raise UserError("nothing of this run is tuned: it has no such ops on this mesh")
    yield from found


def _plain(name: str, backend: str | None) -> Case:
    args = flags.FLAGS
    sizes = Sizes(args.rows, args.tokens, args.heads, args.size, args.values or args.size)
    if name == BLOCKS:
        whole = sizes.rows, sizes.tokens, sizes.width, args.depth, args.dtype
        return blocks_case(*plain_blocks(*whole))
    of = next(one for one in TUNABLE.values() if name in one.examples)
    return op_case(Op(of.name, of.examples[name](sizes), args.dtype), backend)


def _entry(case: Case, tuned: Tuned) -> Entry:
    best, default = (tuned.of(each).seconds for each in (tuned.best, case.default))
    assert best is not None
    assert default is not None
    op, settings = case.op, (dict(tuned.best), dict(case.default))
    return Entry(
        op.name,
        dict(op.shape),
        op.dtype,
        device_name(),
        *settings,
        best.median,
        default.median,
    )


def _told(case: Case, tuned: Tuned) -> dict[str, Any]:
    timed = tuned.of(case.default).seconds is not None
    return {
        "op": case.op.name,
        "shape": dict(case.op.shape),
        "ways": [_told_way(way) for way in tuned.ways],
        "best": dict(tuned.best) if timed else None,
        "kept": tuned.kept,
    }


def _told_way(way: Way) -> dict[str, Any]:
    told = {"settings": dict(way.settings), "refused": way.verdict.refused, "why": way.verdict.why}
    return told if way.seconds is None else told | {"seconds": dataclasses.asdict(way.seconds)}


def _print(case: Case, tuned: Tuned) -> None:
    print(case.op.shown)
    table = TextTable("settings", "seconds (quartiles)", "")
    timed = tuned.of(case.default).seconds is not None
    for way in tuned.ways:
        words = {"default": case.default, "taken": tuned.best if timed else None}
        note = ", ".join(word for word, of in words.items() if way.settings == of)
        if way.verdict.refused:
            why = textwrap.shorten(way.verdict.why, WHY, placeholder=" ...")
            note = f"{note}: ".lstrip(": ") + f"refused, {way.verdict.refused}: {why}"
        elif not timed:
            note = f"{note}, compiles".lstrip(", ")
        shown = " ".join(f"{name}={value}" for name, value in way.settings.items())
        table.add_row(shown, "" if way.seconds is None else str(way.seconds), note)
    print_table(table)
    if tuned.kept:
        print(f"the default is kept: {tuned.kept}")


if __name__ == "__main__":
    cli.run(main, define_flags)
