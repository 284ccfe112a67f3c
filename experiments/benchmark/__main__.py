"""Measures this machine. Medians of several runs; ratios only within one process.

python -m experiments.benchmark step      a training step of the paper's 22.6 M model
python -m experiments.benchmark step --against=gam_model.py    the official PyTorch code too
python -m experiments.benchmark length    one block, 256 to 131,072 tokens
python -m experiments.benchmark decode    writing after 1 Ki, 16 Ki and 256 Ki tokens
python -m experiments.benchmark mesh      a training step on meshes of 1 to 8 emulated devices
python -m experiments.benchmark long      1 Mi tokens over 8 emulated devices
python -m experiments.benchmark checkpoint   what saving and restoring cost

step, length and decode run on one device, or on what --mesh and --emulate say.
"""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import jax
from absl import flags

from experiments import cli
from experiments.benchmark import checkpoint, decode, length, mesh, step
from experiments.devices import define_device_flags, layout_from_flags
from sharding import processes
from sharding.errors import UserError

ON_MESH = {"length": length.run, "decode": decode.run}
OVER_MESHES = {"mesh": mesh.run, "long": mesh.run_long, "checkpoint": checkpoint.run}


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_integer("repeats", 7, "Timed runs of each.", 1)
    flags.DEFINE_string("against", None, "step: path of the official gam_model.py (needs torch).")
    flags.DEFINE_bool("json", False, "Print one JSON object.")
    define_device_flags()


def main(which: str) -> None:
    """Runs one benchmark and prints its figures."""
    args = flags.FLAGS
    if which in OVER_MESHES:
        if args.mesh or args.emulate:
            raise UserError(
                f"benchmark {which} chooses its own meshes: leave --mesh, --emulate out"
            )
        processes.emulate(mesh.DEVICES)
        result = OVER_MESHES[which](args.repeats)
    elif which == "step":
        result = step.run(args.repeats, args.against, layout_from_flags(one_device=True))
    else:
        result = ON_MESH[which](args.repeats, layout_from_flags(one_device=True))
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "jax": jax.__version__}
    if args.json:
        print(json.dumps({"benchmark": which, **machine, **result}))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for name, value in result.items():
        print_figure(name, value)


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
    cli.run(main, define_flags, choices=("step", *ON_MESH, *OVER_MESHES))
