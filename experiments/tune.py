"""Finds the fastest way to compute scans, attention and blocks on this machine.

  gam tune --config=mine.py --mesh=data=4 --out=tuned.json    the ops of a run
  gam tune --ops=delta:head --tokens=4096 --heads=8 --size=32
  gam tune --topology=v5e:2x2      what a TPU's compiler refuses; runs nothing

Ways that do not build, do not compile or are not equal to the plainest one are out before anything
is timed; those left take turns. The file is used where a config names it: see docs/speed.md.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
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
    attention_case,
    blocks_case,
    case_of,
    plain_attention,
    plain_blocks,
    plain_scan,
    scan_case,
    settings_of,
    tune,
)
from gam_jax.config import unknown
from gam_jax.planning.targets import topology
from gam_jax.training.experiment import Experiment
from gam_jax.tuned import Entry, Op, device_name, ops_of, part_of, read_tuned
from sharding.errors import UserError
from sharding.whole_file import check_place, write_named

DTYPES = ("float32", "bfloat16")
SCANS = ("hebb:none", "hebb:head", "hebb:channel", "delta:none", "delta:head", "delta:channel")
OPS = (*SCANS, "attention", "blocks")
"""Scans by their rule and what a decay is of; attention; a stack of blocks."""
SIZES = ("ops", "rows", "tokens", "heads", "size", "values", "depth", "dtype")
"""Flags that say what a run would say."""


def define_flags() -> None:
    """The command line."""
    define_config_flag()
    flags.DEFINE_string("mesh", "", "Of the run, as data=2,tensor=2: a device has its part.")
    flags.DEFINE_list("ops", list(OPS), "What is tuned, where no run is given.")
    flags.DEFINE_integer("rows", 1, "Sequences.", 1)
    flags.DEFINE_integer("tokens", 1024, "Of a sequence.", 1)
    flags.DEFINE_integer("heads", 4, "Of scans and attention.", 1)
    flags.DEFINE_integer("size", 32, "Of a head; blocks are heads x size wide.", 1)
    flags.DEFINE_integer("values", 0, "Size of values in scans; 0 for --size.", 0)
    flags.DEFINE_integer("depth", 4, "Of the stack of blocks.", 1)
    flags.DEFINE_enum("dtype", "float32", DTYPES, "Of what ops are given.")
    flags.DEFINE_integer("repeats", 9, "Turns of what is timed.", 3)
    flags.DEFINE_string("topology", "", "Compile for it, as v5e:2x2 or h100:1x1; nothing is run.")
    cli.define_path("out", "", "File that entries are added to.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    flags.DEFINE_integer("emulate", 0, "Run on that many emulated CPU devices.", 0)


def main() -> None:
    """Tunes, prints, and writes."""
    args = flags.FLAGS
    for name in args.ops:
        if name not in OPS:
            raise UserError(f"--ops: {unknown(name, OPS, 'op')}")
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
    entries = [_entry(case, tuned) for case, tuned in found if tuned.seconds]
    if out is not None:
        keys = {_key(each) for each in entries}
        kept = [each for each in old if _key(each) not in keys]
        every = [dataclasses.asdict(each) for each in (*kept, *entries)]
        write_named(out, json.dumps({"entries": every}, indent=2) + "\n", "--out")
    if args.json:
        print(json.dumps([_told(case, tuned) for case, tuned in found]))


def _old(out: pathlib.Path | None) -> list[Entry]:
    """The entries that are in the file already."""
    if out is None:
        return []
    check_place(out, "--out")
    return read_tuned(out) if out.exists() else []


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
    seen: list[Op] = []
    for op in ops_of(run, part_of(run, args.mesh)):
        if op not in seen:
            seen.append(op)
            yield case_of(op, run.model, backend)  # type: ignore[arg-type]
    if not seen:
        raise UserError("nothing of this run is tuned: it has no such ops on this mesh")


def _plain(name: str, backend: str | None) -> Case:
    args = flags.FLAGS
    sizes = args.rows, args.tokens
    if name == "attention":
        return attention_case(plain_attention(*sizes, args.heads, args.size), args.dtype, backend)
    if name == "blocks":
        return blocks_case(*plain_blocks(*sizes, args.heads * args.size, args.depth, args.dtype))
    shape = plain_scan(name, *sizes, args.heads, args.size, args.values)
    return scan_case(shape, args.dtype, backend)


def _entry(case: Case, tuned: Tuned) -> Entry:
    best, default = (
        tuned.seconds[case.space.point_of(each)].median for each in (tuned.best, case.default)
    )
    return Entry(
        case.op,
        dict(case.shape),
        case.dtype,
        device_name(),
        settings_of(tuned.best),
        settings_of(case.default),
        best,
        default,
    )


def _key(entry: Entry) -> tuple[str, str, str, str]:
    return entry.op, json.dumps(entry.shape, sort_keys=True), entry.dtype, entry.device


def _told(case: Case, tuned: Tuned) -> dict[str, Any]:
    ways = []
    for point, verdict in tuned.verdicts.items():
        settings = settings_of(case.space.values(point))
        way: dict[str, Any] = {"settings": settings, "refused": verdict.refused, "why": verdict.why}
        if point in tuned.seconds:
            way["seconds"] = dataclasses.asdict(tuned.seconds[point])
        ways.append(way)
    return {
        "op": case.op,
        "shape": dict(case.shape),
        "ways": ways,
        "best": settings_of(tuned.best) if tuned.seconds else None,
    }


def _print(case: Case, tuned: Tuned) -> None:
    sizes = " ".join(f"{name}={size}" for name, size in case.shape.items())
    print(f"{case.op}: {sizes} {case.dtype}")
    table = TextTable("settings", "seconds (quartiles)", "")
    best, default = (case.space.point_of(each) for each in (tuned.best, case.default))
    for point, verdict in tuned.verdicts.items():
        settings = settings_of(case.space.values(point)).items()
        words = [w for w, at in (("default", default), ("taken", best)) if point == at]
        note = f"refused, {verdict.refused}: {verdict.why}" if verdict.refused else ""
        seconds = str(tuned.seconds[point]) if point in tuned.seconds else ""
        shown = " ".join(f"{name}={value}" for name, value in settings)
        table.add_row(shown, seconds, note or (", ".join(words) if tuned.seconds else ""))
    print_table(table)


if __name__ == "__main__":
    cli.run(main, define_flags)
