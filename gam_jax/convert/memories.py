"""Arrays of linear memories, as many classes store them: rows of queries, of keys, of values."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gam_jax.layers import LinearMemory


def sizes_of(memory: LinearMemory) -> tuple[int, int, int]:
    """How many channels the queries, keys and values of all heads have."""
    keys = memory.groups * memory.keys
    return keys, keys, memory.heads * memory.values


def joined(memory: LinearMemory, parts: Iterable[np.ndarray]) -> np.ndarray:
    """Rows of queries, keys and values, each [channels, X], as [X, G, 2 K + H N / G]."""
    return np.concatenate([x.T.reshape(x.shape[1], memory.groups, -1) for x in parts], axis=2)


def parted(memory: LinearMemory, mixed: np.ndarray) -> list[np.ndarray]:
    """The inverse of `joined`."""
    ends = (memory.keys, 2 * memory.keys)
    return [x.reshape(len(x), -1).T for x in np.split(mixed, ends, axis=2)]


def rows_of(memory: LinearMemory, stored: np.ndarray) -> list[np.ndarray]:
    """One array of all rows as those of queries, of keys and of values."""
    first, second, _ = sizes_of(memory)
    return np.split(stored, (first, first + second))
