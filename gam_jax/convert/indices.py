"""Places on the axes of arrays: what is read at once, and where it was before a reshape."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

Index = tuple[np.ndarray, ...]
"""For each axis the places that are wanted, in their order."""
PIECE = 1 << 21
"""Numbers that are read at once, where the last axes allow it."""


def cuts(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Pieces of about `PIECE` numbers, one behind the other in memory."""
    axis, inner = len(shape), 1
    while axis and inner * shape[axis - 1] <= PIECE:
        axis -= 1
        inner *= shape[axis]
    rest = (slice(None),) * (len(shape) - axis)
    if not axis:
        yield rest
        return
    step = max(1, PIECE // inner)
    starts = range(0, shape[axis - 1], step)
    for *outer, start in itertools.product(*map(range, shape[: axis - 1]), starts):
        yield (*(slice(i, i + 1) for i in outer), slice(start, start + step), *rest)


def picked(array: np.ndarray, index: Index) -> np.ndarray:
    """The part of an array at some places; a view where they are neighbours on each axis."""
    slices = [as_slice(places) for places in index]
    array = array[tuple(slice(None) if cut is None else cut for cut in slices)]
    if None not in slices:
        return array
    pairs = zip(slices, index, strict=True)
    return array[np.ix_(*(p if cut is None else np.arange(len(p)) for cut, p in pairs))]


def as_slice(places: np.ndarray) -> slice | None:
    """The places as a slice if they are neighbours in order, else None."""
    if len(places) and places[-1] - places[0] == len(places) - 1 and (np.diff(places) == 1).all():
        return slice(int(places[0]), int(places[-1]) + 1)
    return None


def groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The axes of two shapes, cut into the shortest runs of as many numbers each."""
    found, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        own, other = [*range(i, min(i + 1, len(before)))], [*range(j, min(j + 1, len(after)))]
        x, y = math.prod(before[a] for a in own), math.prod(after[a] for a in other)
        i, j = i + len(own), j + len(other)
        while x != y:
            if x < y:
                own.append(i)
                x, i = x * before[i], i + 1
            else:
                other.append(j)
                y, j = y * after[j], j + 1
        found.append((own, other))
    return found


def box_around(
    flat: np.ndarray, sizes: Sequence[int]
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Places on axes that were joined: a box around them, and which of its numbers they are.

    None where they are all of it, in order.
    """
    if not sizes:
        return [], None
    if len(sizes) == 1:
        return [flat], None
    found = [np.unique(own, return_inverse=True) for own in np.unravel_index(flat, sizes)]
    box = [places for places, _ in found]
    lengths = tuple(map(len, box))
    pick = np.ravel_multi_index(tuple(back for _, back in found), lengths)
    exact = len(pick) == math.prod(lengths) and bool((np.diff(pick) == 1).all())
    return box, None if exact else pick
