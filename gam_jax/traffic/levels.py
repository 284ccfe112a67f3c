"""What a parameter in shards sends over each level of the data axis.

Of an array of B bytes, a gather and a scatter each send B / I (s - 1) / s over a level of s devices
with I devices inside it: over all levels of a group of n devices together B (n - 1) / n.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sharding.messages import Message


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
    size: int, axes: Sequence[str], mesh: Mapping[str, int], count: int = 1
) -> Iterator[Message]:
    """Arrays of `size` bytes are summed, the innermost level first, each device keeping a part."""
    for axis in axes:
        yield Message("reduce_scatter", (axis,), mesh[axis], size, count)
        size //= mesh[axis]
