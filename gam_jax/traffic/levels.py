"""What a parameter in shards sends over each level of the data axis.

Of an array of B bytes, a gather and a scatter each send B / I (s - 1) / s over a level of s devices
with I devices inside it: over all levels of a group of n devices together B (n - 1) / n.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from gam_jax.traffic.sizes import FLOAT
from sharding.messages import Message
from sharding.quantised import coded_bytes, hops


def as_sent(count: int, itemsize: int, bits: int, parts: int) -> int:
    """Bytes of so many numbers, sent in few bits where `bits` is not 0.

    Args:
      count: of numbers, in all parts.
      itemsize: bytes of one that is sent as it is.
      bits: of one; 0 for as it is.
      parts: that each have blocks of their own.
    """
    return parts * coded_bytes(count // parts, bits) if bits else count * itemsize


def gathers(
    size: int, axes: Sequence[str], mesh: Mapping[str, int], count: int = 1
) -> Iterator[Message]:
    """An array that is `size` bytes when it is whole, from its parts, the outermost level first.

    Args:
      size: bytes.
      axes: the mesh axes, the innermost first.
      mesh: devices along each.
      count: how often.
    """
    for axis in axes:
        size //= mesh[axis]
        yield Message("all_gather", (axis,), mesh[axis], size, count)


def scatters(
    size: int, axes: Sequence[str], mesh: Mapping[str, int], count: int = 1, bits: int = 0
) -> Iterator[Message]:
    """Arrays of `size` bytes are summed, the innermost level first, each device keeping a part.

    Args:
      size: bytes.
      axes: the mesh axes, the innermost first.
      mesh: devices along each.
      count: how often.
      bits: of float32 numbers that are sent in few, in two hops at most; 0 for as they are.
    """
    for group in hops(axes) if bits else ():
        devices = math.prod(mesh[axis] for axis in group)
        yield Message(
            "all_to_all", group, devices, as_sent(size // FLOAT, FLOAT, bits, devices), count
        )
        size //= devices
    for axis in () if bits else axes:
        yield Message("reduce_scatter", (axis,), mesh[axis], size, count)
        size //= mesh[axis]
