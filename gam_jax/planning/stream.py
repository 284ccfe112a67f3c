"""STREAM: how fast memory is, by four kernels that do almost nothing else.

Source: J. McCalpin, STREAM (www.cs.virginia.edu/stream): kernels, counted bytes and self-check.
Heller et al. (arXiv 2206.06302) say of it that work must lie where its data lie.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SCALAR = 3.0
"""k of the kernels."""
BEGIN = {"a": 2.0, "b": 2.0, "c": 0.0}
"""What the arrays hold before the first turn; STREAM doubles its a = 1 once."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One of the four.

    Attributes:
      writes: the array that it fills: "a", "b" or "c".
      reads: the arrays that it reads.
      formula: of them, and of k.
    """

    writes: str
    reads: tuple[str, ...]
    formula: Callable[..., Any]

    def bytes(self, size: int, itemsize: int = 8) -> int:
        """That are counted for arrays of `size` numbers: each array read or written once.

        What a cache fetches in order to write is not counted, as in STREAM.
        """
        return (len(self.reads) + 1) * size * itemsize


KERNELS: Mapping[str, Kernel] = {
    "copy": Kernel("c", ("a",), lambda a: a + 0),  # a bare a would be no pass over memory
    "scale": Kernel("b", ("c",), lambda c: SCALAR * c),
    "add": Kernel("c", ("a", "b"), lambda a, b: a + b),
    "triad": Kernel("a", ("b", "c"), lambda b, c: b + SCALAR * c),
}
"""In the order of a turn."""


@jax.jit
def one_turn(arrays: dict[str, Float[Array, " N"]]) -> dict[str, Float[Array, " N"]]:
    """The four kernels, one after the other, on arrays a, b and c."""
    arrays = dict(arrays)
    for kernel in KERNELS.values():
        arrays[kernel.writes] = kernel.formula(*(arrays[name] for name in kernel.reads))
    return arrays


def self_check(size: int, turns: int = 10) -> float:
    """The largest relative difference of any number from what STREAM says it must be.

    Args:
      size: numbers of each array.
      turns: of all four kernels.
    """
    arrays = {name: jnp.full((size,), value) for name, value in BEGIN.items()}
    expected = dict(BEGIN)
    for _ in range(turns):
        arrays = one_turn(arrays)
        for kernel in KERNELS.values():
            expected[kernel.writes] = kernel.formula(*(expected[name] for name in kernel.reads))
    return max(
        float(jnp.max(jnp.abs(arrays[name] / value - 1))) for name, value in expected.items()
    )
