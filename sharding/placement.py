"""Batches that each process reads its own part of, as arrays of the whole mesh."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding


@dataclasses.dataclass(frozen=True)
class RowShare:
    """Part number `part` of `parts` equal parts of a batch's rows: what one process reads."""

    part: int
    parts: int


def row_share(sharding: NamedSharding, shape: Sequence[int]) -> RowShare:
    """The rows that this process's devices hold.

    Processes that differ only in other axes than the rows' read the same rows. Where a process's
    devices do not hold one of several equal blocks of rows, it reads them all.

    Args:
      sharding: of a batch [..., rows, tokens].
      shape: of the whole batch.
    """
    rows = shape[-2]
    held = sharding.addressable_devices_indices_map(tuple(shape)).values()
    blocks = sorted({index[-2].indices(rows)[:2] for index in held if index})
    first, last = blocks[0][0], blocks[-1][1]
    count = last - first
    together = all(a[1] == b[0] for a, b in itertools.pairwise(blocks))
    if not together or rows % count or first % count:
        return RowShare(0, 1)
    return RowShare(first // count, rows // count)


def place(
    local: Mapping[str, np.ndarray], sharding: NamedSharding, share: RowShare
) -> dict[str, jax.Array]:
    """A batch whose rows on this process are `local` [..., rows / parts, tokens]."""

    def whole(array: np.ndarray) -> jax.Array:
        rows = array.shape[-2]
        first = share.part * rows
        shape = (*array.shape[:-2], rows * share.parts, array.shape[-1])

        def own(index: Any) -> np.ndarray:
            start, stop, _ = index[-2].indices(shape[-2])
            return array[(*index[:-2], slice(start - first, stop - first), index[-1])]

        return jax.make_array_from_callback(shape, sharding, own)

    return {name: whole(array) for name, array in local.items()}
