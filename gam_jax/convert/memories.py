"""Arrays of linear memories, as many classes store them: rows of queries, of keys, of values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from gam_jax.layers import LinearMemory
from gam_jax.params import Param, Params

Take = Callable[..., np.ndarray]
"""(name, *shape) -> an array of a folder, as `Reader.take`."""


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


def read_apart(memory: LinearMemory, take: Take) -> dict[str, np.ndarray]:
    """w_qkv of q_proj, k_proj and v_proj; conv of filters with such names."""
    sizes, table = dict(zip("qkv", sizes_of(memory), strict=True)), memory.table()
    width, taps = table["w_qkv"].shape[0], memory.recipe.kernel
    weights = [take(f"{name}_proj.weight", size, width) for name, size in sizes.items()]
    found = {"w_qkv": joined(memory, weights)}
    if "conv" in table:
        filters = [take(f"{n}_conv1d.weight", size, 1, taps)[:, 0] for n, size in sizes.items()]
        found["conv"] = joined(memory, filters)
    return found


def write_apart(memory: LinearMemory, params: Params) -> dict[str, np.ndarray]:
    """The inverse of `read_apart`."""
    tensors = {}
    for name, weight in zip("qkv", parted(memory, params["w_qkv"]), strict=True):
        tensors[f"{name}_proj.weight"] = weight
    if "conv" in params:
        for name, filters in zip("qkv", parted(memory, params["conv"]), strict=True):
            tensors[f"{name}_conv1d.weight"] = filters[:, None]
    return tensors


def read_named(memory: LinearMemory, take: Take, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Matrices as outputs x inputs, and vectors; `names` are ours and theirs.

    Names of what this memory lacks are passed over.
    """
    found = {}
    for ours, param in memory.table().items():
        if ours in names:
            stored = take(names[ours], *_stored(ours, param))
            turned = len(_stored(ours, param)) == 2 and not param.transposed
            found[ours] = (stored.T if turned else stored).reshape(param.shape)
    return found


def write_named(
    memory: LinearMemory, params: Params, names: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """The inverse of `read_named`."""
    tensors = {}
    for ours, param in memory.table().items():
        if ours in names:
            shape = _stored(ours, param)
            flat = len(shape) == 1 or param.transposed
            own = params[ours].reshape(shape if flat else shape[::-1])
            tensors[names[ours]] = own if flat else own.T
    return tensors


def _stored(name: str, param: Param) -> tuple[int, ...]:
    """The shape of a matrix, whose name begins with w_, or of a vector, in a folder."""
    if not name.startswith("w_"):
        return (math.prod(param.shape),)
    rest = math.prod(param.shape[1:])
    return (param.shape[0], rest) if param.transposed else (rest, param.shape[0])
