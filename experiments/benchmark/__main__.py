"""Measures this machine. Medians of several runs; ratios only within one process.

  gam benchmark step         a training step of the paper's 22.6 M model
  gam benchmark step --against=gam_model.py    the official PyTorch code too
  gam benchmark length       one block, 256 to 131,072 tokens
  gam benchmark length --mixers=GAM,LinearMemory.gla --lengths=131072
  gam benchmark decode       writing after 1 Ki, 16 Ki and 256 Ki tokens
  gam benchmark decode --mixers=Mamba,LSTM --lengths=1024,16384
  gam benchmark compiling    programs that read and write, 4 to 40 layers
  gam benchmark scan         the ways to compute a memory scan, 8,192 tokens
  gam benchmark selective    the selective scan, by method and chunk
  gam benchmark memory       bytes that each op sets aside, to 65,536 tokens
  gam benchmark attention    attention in blocks, and all scores at once
  gam benchmark loss         the loss by tokens and vocabulary, beside PyTorch
  gam benchmark bank         one read, 4,096 to 1,048,576 slots
  gam benchmark peers        writing, layers and steps, beside PyTorch
  gam benchmark serve        many texts at once, remembered states, guesses
  gam benchmark serve --url=http://127.0.0.1:8000    load on a running server
  gam benchmark experts      experts in blocks, by ragged_dot, all for all
  gam benchmark mofme        modulated experts beside feed-forward experts
  gam benchmark mesh         a training step on 1 to 8 emulated devices
  gam benchmark pipe         a training step in stages, by schedule
  gam benchmark long         1 Mi tokens over 8 emulated devices
  gam benchmark checkpoint   what saving and restoring cost

  gam benchmark all figures.json     each of these, in a process of its own
  gam benchmark all figures.json --short --only=step,scan
  gam benchmark compare old.json new.json    what is slower beyond noise: code 1
  gam benchmark page figures.json docs/measured.md    the figures as a page

step, length and decode run on one device, or on what --mesh and --emulate say; the others choose.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import flags

from experiments import cli
from experiments.benchmark import (
    attention,
    bank,
    checkpoint,
    compiling,
    decode,
    experts,
    length,
    load,
    loss,
    memory,
    mesh,
    mofme,
    peers,
    pipe,
    scan,
    selective,
    serve,
    step,
)
from experiments.benchmark.against import compare, print_changes
from experiments.benchmark.collect import collect, machine, read, written
from experiments.benchmark.page import page
from experiments.benchmark.timing import Rows
from experiments.devices import define_device_flags, layout_from_flags, say_where
from gam_jax.config import unknown
from sharding import processes
from sharding.errors import UserError
from sharding.whole_file import check_place, write_named

ON_MESH: dict[str, Callable[..., Rows]] = {
    "step": step.run,
    "length": length.run,
    "decode": decode.run,
}
ON_ONE: dict[str, Callable[..., Rows]] = {
    "compiling": compiling.run,
    "scan": scan.run,
    "selective": selective.run,
    "memory": memory.run,
    "attention": attention.run,
    "loss": loss.run,
    "bank": bank.run,
    "experts": experts.run,
    "mofme": mofme.run,
    "peers": peers.run,
    "serve": serve.run,
}
OVER_MESHES: dict[str, Callable[..., Rows]] = {
    "mesh": mesh.run,
    "pipe": pipe.run,
    "long": mesh.run_long,
    "checkpoint": checkpoint.run,
}
BENCHMARKS = {**ON_MESH, **ON_ONE, **OVER_MESHES}
SHORT_LENGTHS = (256, 1024)
FILES = {"all": 1, "compare": 2, "page": 2}
"""Commands that read or write files, and how many."""


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_integer("repeats", 7, "Timed runs of each.", 1)
    cli.define_path("against", None, "step: path of the official gam_model.py (needs torch).")
    flags.DEFINE_list("mixers", ["GAM"], "length, decode: layers, as GAM or LinearMemory.gla.")
    flags.DEFINE_list("lengths", [], "length, decode: tokens; their own if not given.")
    flags.DEFINE_string("url", "", "serve: a running server of the OpenAI API, to be loaded.")
    flags.DEFINE_float("rate", 4.0, "serve --url: requests a second, on average.", 0.001)
    flags.DEFINE_integer("requests", 100, "serve --url: how many.", 1, 2**20)
    flags.DEFINE_list("letters", ["64", "1024"], "serve --url: of a prompt, least and most.")
    flags.DEFINE_list("tokens", ["16", "128"], "serve --url: of an answer, least and most.")
    flags.DEFINE_string("model", "", "serve --url: by name; the server's first if not given.")
    flags.DEFINE_string("api_key", "", f"serve --url: of the server; better in {load.KEY}.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    flags.DEFINE_bool("short", False, "The smallest sizes alone: seconds each.")
    flags.DEFINE_list("only", [], "all: some of the benchmarks.")
    flags.DEFINE_bool("resume", False, "all: keep what the file has, measure what it lacks.")
    flags.DEFINE_float("tolerance", 0.1, "compare: a smaller share is no change.", 0.0)
    define_device_flags()


def main(which: str, *files: str) -> None:
    """Runs one benchmark, or all, and prints the figures; or reads those of two files."""
    paths = [pathlib.Path(file) for file in files]
    if which == "compare":
        changes = compare(*map(read, paths), tolerance=flags.FLAGS.tolerance)
        print_changes(changes)
        sys.exit(1 if changes.worse else 0)
    if which == "page":
        check_place(paths[1])
        write_named(paths[1], page(read(paths[0]), BENCHMARKS))
        print(f"written to {paths[1]}")
    elif which == "all":
        _all(paths[0])
    else:
        _one(which)


def _one(which: str) -> None:
    rows, here = _run(which), machine()
    if flags.FLAGS.json:
        print(json.dumps({"benchmark": which, "machine": here, "rows": written(rows)}))
        return
    print(", ".join(f"{name} {value}" for name, value in here.items()))
    for name, row in rows.items():
        print(f"{name}: " + ", ".join(f"{column} {figure}" for column, figure in row.items()))


def _all(path: pathlib.Path) -> None:
    args = flags.FLAGS
    for name in args.only:
        if name not in BENCHMARKS:
            raise UserError(f"--only: {unknown(name, BENCHMARKS, 'benchmark')}")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; make it, or name another file")
    check_place(path)
    wanted = [name for name in BENCHMARKS if not args.only or name in args.only]
    if not peers.installed() and "peers" not in args.only:
        wanted.remove("peers")
        print("peers is left out: it needs torch, pip install 'gam_jax[official]'", file=sys.stderr)
    options = [f"--repeats={args.repeats}", *(["--short"] if args.short else [])]
    failed = collect(wanted, options, path, args.resume)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)
    print(f"figures in {path}")


def _run(which: str) -> Rows:
    args = flags.FLAGS
    if which not in ON_MESH and (args.mesh or args.emulate):
        raise UserError(f"benchmark {which} chooses its own devices: leave --mesh, --emulate out")
    if args.url:
        return load.run(_load(), args.short)
    if which in OVER_MESHES:
        processes.emulate(mesh.DEVICES)
        say_where()
        return OVER_MESHES[which](args.repeats, args.short)
    if which in ON_ONE:
        say_where(1)
        return ON_ONE[which](args.repeats, args.short)
    layout = layout_from_flags(one_device=True)
    say_where(layout.mesh.size)
    if which == "step":
        return step.run(args.repeats, args.against, layout)
    lengths = _lengths("lengths") or (SHORT_LENGTHS if args.short else ())
    if which == "length":
        return length.run(args.repeats, layout, args.mixers, lengths or length.LENGTHS)
    return decode.run(args.repeats, layout, args.mixers, lengths or decode.CONTEXTS)


def _load() -> load.Load:
    args = flags.FLAGS
    letters, tokens = _bounds("letters"), _bounds("tokens")
    return load.Load(args.url, args.rate, args.requests, letters, tokens, args.model, args.api_key)


def _bounds(name: str) -> tuple[int, int]:
    found = _lengths(name)
    if len(found) != 2 or not found[0] <= found[1] <= load.MOST:
        raise UserError(f"--{name}: give the least and the most, as 64,1024; {load.MOST:,} at most")
    return found[0], found[1]


def _lengths(name: str) -> list[int]:
    given: Sequence[str] = getattr(flags.FLAGS, name)
    if not all(number.isdecimal() and int(number[:12]) for number in given):
        raise UserError(f"--{name}={','.join(given)}: give whole numbers above 0, as 1024,4096")
    return [int(number) for number in given]


if __name__ == "__main__":
    cli.run(main, define_flags, choices=(*BENCHMARKS, *FILES), files=FILES)
