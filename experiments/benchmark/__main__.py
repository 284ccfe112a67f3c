"""Measures this machine. Medians of several runs; ratios only within one process.

python -m experiments.benchmark step         a training step of the paper's 22.6 M model
python -m experiments.benchmark step --against=gam_model.py    the official PyTorch code too
python -m experiments.benchmark length       one block, 256 to 131,072 tokens
python -m experiments.benchmark length --mixers=GAM,LinearMemory.gla --lengths=131072
python -m experiments.benchmark decode       writing after 1 Ki, 16 Ki and 256 Ki tokens
python -m experiments.benchmark decode --mixers=Mamba,LSTM --lengths=1024,16384
python -m experiments.benchmark scan         the ways to compute a memory scan, 8,192 tokens
python -m experiments.benchmark selective    the selective scan, by method and chunk
python -m experiments.benchmark attention    attention in blocks, and all scores at once
python -m experiments.benchmark bank         one read, 4,096 to 1,048,576 slots
python -m experiments.benchmark mesh         a training step on meshes of 1 to 8 emulated devices
python -m experiments.benchmark long         1 Mi tokens over 8 emulated devices
python -m experiments.benchmark checkpoint   what saving and restoring cost

step, length and decode run on one device, or on what --mesh and --emulate say; the others choose.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from experiments import cli
from experiments.benchmark import (
    attention,
    bank,
    checkpoint,
    decode,
    length,
    mesh,
    scan,
    selective,
    step,
)
from experiments.devices import define_device_flags, layout_from_flags
from sharding import processes
from sharding.errors import UserError

ON_MESH = ("step", "length", "decode")
ON_ONE = {
    "scan": scan.run,
    "selective": selective.run,
    "attention": attention.run,
    "bank": bank.run,
}
OVER_MESHES = {"mesh": mesh.run, "long": mesh.run_long, "checkpoint": checkpoint.run}


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_integer("repeats", 7, "Timed runs of each.", 1)
    flags.DEFINE_string("against", None, "step: path of the official gam_model.py (needs torch).")
    flags.DEFINE_list("mixers", ["GAM"], "length, decode: layers, as GAM or LinearMemory.gla.")
    flags.DEFINE_list("lengths", [], "length, decode: tokens; their own if not given.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    define_device_flags()


def main(which: str) -> None:
    """Runs one benchmark and prints its figures."""
    result = _run(which)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "jax": jax.__version__}
    if flags.FLAGS.json:
        print(json.dumps({"benchmark": which, **machine, **result}))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for name, value in result.items():
        print_figure(name, value)


def _run(which: str) -> dict[str, Any]:
    args = flags.FLAGS
    if which not in ON_MESH and (args.mesh or args.emulate):
        raise UserError(f"benchmark {which} chooses its own devices: leave --mesh, --emulate out")
    if which in OVER_MESHES:
        processes.emulate(mesh.DEVICES)
        return OVER_MESHES[which](args.repeats)
    if which in ON_ONE:
        return ON_ONE[which](args.repeats)
    layout = layout_from_flags(one_device=True)
    if which == "step":
        return step.run(args.repeats, args.against, layout)
    lengths = _lengths(args.lengths)
    if which == "length":
        return length.run(args.repeats, layout, args.mixers, lengths or length.LENGTHS)
    return decode.run(args.repeats, layout, args.mixers, lengths or decode.CONTEXTS)


def _lengths(given: Sequence[str]) -> list[int]:
    if not all(number.isdigit() and int(number) for number in given):
        raise UserError(f"--lengths={','.join(given)}: give whole numbers of tokens, as 1024,4096")
    return [int(number) for number in given]


def print_figure(name: str, value: Any) -> None:
    """One line a figure, one line a row."""
    if isinstance(value, list):
        print(f"{name}:")
        for row in value:
            print("  ".join(f"{key} {_shown(number)}" for key, number in row.items()))
    elif isinstance(value, dict):
        print(f"{name}: " + "  ".join(f"{key} {number:.4g}" for key, number in value.items()))
    else:
        print(f"{name}: {value:.4g}")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}"


if __name__ == "__main__":
    cli.run(main, define_flags, choices=(*ON_MESH, *ON_ONE, *OVER_MESHES))
