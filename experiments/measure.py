"""Measures what this machine can do, and writes it as a profile that `gam plan` reads.

  gam measure --out=local.toml
  gam measure --out=local.toml --matrix=local.json --emulate=8

Memory by the four kernels of STREAM, products of square matrices, and messages between every two
devices, in rounds in which each device talks to one other. Emulated devices share one machine.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec

from experiments import cli
from gam_jax.config import unknown
from gam_jax.planning.stream import BEGIN, KERNELS, self_check
from sharding import processes
from sharding.errors import UserError
from sharding.mesh import make_mesh
from sharding.whole_file import check_place, write_named

WORD = 8
"""Bytes of STREAM's numbers."""

DTYPES = ("float32", "bfloat16")


def define_flags() -> None:
    """The command line."""
    cli.define_path("out", None, "The file that is written, as local.toml.")
    cli.define_path("matrix", None, "A file for bandwidths between every two devices, as JSON.")
    flags.DEFINE_string("name", "cpu_local", "What the profile is called.")
    flags.DEFINE_list("dtypes", list(DTYPES), "Whose products are measured.")
    flags.DEFINE_integer("megabytes", 64, "Of each array that memory is measured with.", 1, 65536)
    flags.DEFINE_integer("size", 1024, "Side of the matrices that are multiplied.", 8, 65536)
    flags.DEFINE_integer("repeats", 5, "The best of so many counts.", 1, 1000)
    flags.DEFINE_integer("emulate", 0, "Use that many emulated CPU devices.", 0)


def main() -> None:
    """Measures, and writes the files."""
    args = flags.FLAGS
    if not args.out:
        raise UserError("--out is not given: say which file to write, as local.toml")
    if not re.fullmatch(r"\w+", args.name, re.ASCII):
        raise UserError(f"--name={args.name}: give letters, digits and _ alone, as cpu_local")
    for dtype in args.dtypes:
        if dtype not in (*DTYPES, "float16"):
            raise UserError(f"--dtypes: {unknown(dtype, (*DTYPES, 'float16'), 'dtype')}")
    out = pathlib.Path(args.out)
    check_place(out, "--out")
    if args.matrix:
        check_place(pathlib.Path(args.matrix), "--matrix")
    if args.emulate:
        processes.emulate(args.emulate)
    count = len(jax.devices())
    figures = {
        **{
            f"flops.{dtype}": (products(args.size, dtype, args.repeats), "FLOP/s")
            for dtype in args.dtypes
        },
        "memory.device.capacity": (_capacity(), "B"),
        "memory.device.bandwidth": (stream(args.megabytes * 2**20, args.repeats)["triad"], "B/s"),
    }
    if count > 1:
        matrix = pairs(args.megabytes * 2**18, args.repeats)
        slowest = float(matrix[~np.eye(count, dtype=bool)].min())
        figures["links.node.devices"] = (count, "devices")
        figures["links.node.bandwidth"] = (slowest, "B/s")
        if args.matrix:
            text = json.dumps({"bandwidth": matrix.tolist()})
            write_named(pathlib.Path(args.matrix), text, "--matrix")
    write_named(out, profile_text(args.name, figures), "--out")
    for name, (value, unit) in figures.items():
        print(f"{name} {value:.4g} {unit}")


def profile_text(name: str, figures: dict[str, tuple[float, str]]) -> str:
    """A profile as `gam_jax.planning.read_profiles` reads it."""
    kind = jax.devices()[0].device_kind
    lines = [f"[{name}]", f'about = "{kind}, measured by gam measure"', 'dtype = "float32"']
    lines.append(f'backend = "{jax.default_backend()}"')
    for figure, (value, unit) in figures.items():
        said = f'value = {value!r}, unit = "{unit}", kind = "measured", source = "here"'
        lines.append(f"{figure} = {{ {said} }}")
    return "\n".join([*lines, "", "[sources]", 'here = "gam measure, on this machine"', ""])


def stream(size: int, repeats: int) -> dict[str, float]:
    """Bytes a second of each kernel, of one device; arrays have `size` bytes each.

    Raises:
      UserError: the kernels have not computed what STREAM's own check asks for.
    """
    with jax.enable_x64(True):
        if self_check(1000) > 1e-12:
            raise UserError("STREAM's kernels are computed wrongly on this machine")
        count = size // WORD
        arrays = {name: jnp.full(count, value) for name, value in BEGIN.items()}
        found = {}
        for name, kernel in KERNELS.items():
            compiled, read = jax.jit(kernel.formula), [arrays[each] for each in kernel.reads]
            jax.block_until_ready(compiled(*read))
            best = _best(lambda call=compiled, read=read: call(*read), repeats)
            found[name] = kernel.bytes(count, WORD) / best
    return found


def products(side: int, dtype: str, repeats: int) -> float:
    """Operations a second of a product of two square matrices, of one device."""
    x = jnp.ones((side, side), dtype)
    multiply = jax.jit(lambda x, y: x @ y)
    jax.block_until_ready(multiply(x, x))
    return 2 * side**3 / _best(lambda: multiply(x, x), repeats)


def pairs(size: int, repeats: int) -> np.ndarray:
    """Bytes a second from each device to each other, [N, N]; infinite from one to itself.

    Args:
      size: bytes of a message.
      repeats: of each round, whose median counts.
    """
    devices = jax.devices()
    mesh = make_mesh(data=len(devices), devices=devices, hosts=[0] * len(devices))
    placed = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.device_put(np.zeros((len(devices), size // 4), np.float32), placed)
    found = np.full((len(devices), len(devices)), np.inf)
    for pairing in rounds(len(devices)):
        there = [*pairing, *((b, a) for a, b in pairing)]
        send = jax.jit(
            jax.shard_map(
                lambda x, there=there: jax.lax.ppermute(x, "data", there),
                mesh=mesh,
                in_specs=PartitionSpec("data"),
                out_specs=PartitionSpec("data"),
            )
        )
        jax.block_until_ready(send(x))
        took = statistics.median(_timed(lambda send=send: send(x)) for _ in range(repeats))
        for a, b in there:
            found[a, b] = size / took
    return found


def rounds(count: int) -> Iterator[list[tuple[int, int]]]:
    """Every two of `count` once, in rounds in which nobody is in two pairs (a round robin)."""
    circle = [*range(count), *((-1,) if count % 2 else ())]
    for _ in range(len(circle) - 1):
        half = len(circle) // 2
        opposite = zip(circle[:half], reversed(circle[half:]), strict=True)
        yield [(a, b) for a, b in opposite if a >= 0 and b >= 0]
        circle = [circle[0], circle[-1], *circle[1:-1]]


def _capacity() -> float:
    """Bytes of a device; of the machine where devices are its processor."""
    told = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in told:
        return float(told["bytes_limit"])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _best(call: Callable[[], Any], repeats: int) -> float:
    return min(_timed(call) for _ in range(repeats))


def _timed(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begun


if __name__ == "__main__":
    cli.run(main, define_flags)
