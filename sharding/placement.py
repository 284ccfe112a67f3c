"""Batches that each process reads its own part of, as arrays of the whole mesh."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

Shardings = Mapping[str, NamedSharding]
"""Of each array of a batch."""


@dataclasses.dataclass(frozen=True)
class RowShare:
    """Part number `part` of `parts` equal parts of a batch's rows: what one process reads."""

    part: int
    parts: int


def row_share(shardings: Shardings, shapes: Mapping[str, Sequence[int]], dim: int) -> RowShare:
    """The rows that this process's devices hold, the same of every array of a batch.

    Processes that differ only in other axes than the rows' read the same rows. Where a process's
    devices do not hold one of several equal blocks of rows, it reads them all.

    Args:
      shardings: of the whole arrays.
      shapes: of the whole arrays.
      dim: the dimension of the rows.
    """
    shares = {_share(shardings[name], shape, dim) for name, shape in shapes.items()}
    return shares.pop() if len(shares) == 1 else RowShare(0, 1)


def _share(sharding: NamedSharding, shape: Sequence[int], dim: int) -> RowShare:
    rows = shape[dim]
    held = sharding.addressable_devices_indices_map(tuple(shape)).values()
    blocks = sorted({index[dim].indices(rows)[:2] for index in held if index})
    first, last = blocks[0][0], blocks[-1][1]
    count = last - first
    together = all(a[1] == b[0] for a, b in itertools.pairwise(blocks))
    if not together or rows % count or first % count:
        return RowShare(0, 1)
    return RowShare(first // count, rows // count)


def place(
    local: Mapping[str, np.ndarray], shardings: Shardings, share: RowShare, dim: int
) -> dict[str, jax.Array]:
    """A batch of which this process has its own rows, as arrays of the whole mesh.

    Args:
      local: this process's rows of each array.
      shardings: of the whole arrays.
      share: which rows they are.
      dim: the dimension of the rows.
    """

    def whole(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        rows = array.shape[dim]
        first = share.part * rows
        shape = (*array.shape[:dim], rows * share.parts, *array.shape[dim + 1 :])

        def own(index: Any) -> np.ndarray:
            start, stop, _ = index[dim].indices(shape[dim])
            return array[(*index[:dim], slice(start - first, stop - first), *index[dim + 1 :])]

        return jax.make_array_from_callback(shape, sharding, own)

    return {name: whole(array, shardings[name]) for name, array in local.items()}
