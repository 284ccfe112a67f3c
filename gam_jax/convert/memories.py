"""Arrays of linear memories, as many classes store them: rows of queries, of keys, of values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from gam_jax.layers import LinearMemory
from gam_jax.params import Params

Take = Callable[..., np.ndarray]
"""(name, *shape) -> an array of a folder, as `Reader.take`."""

OUT = "w_out"
"""The matrix that stands as outputs x inputs here too."""


def sizes_of(memory: LinearMemory) -> tuple[int, int, int]:
    """How many channels the queries, keys and values of all heads have."""
    keys = memory.groups * memory.keys
    return keys, keys, memory.heads * memory.values


def joined(memory: LinearMemory, parts: Iterable[np.ndarray]) -> np.ndarray:
    """Rows of queries, keys and values, each [channels, X], as [X, G, 2 K + H N / G]."""
    return np.concatenate([x.T.reshape(x.shape[1], memory.groups, -1) for x in parts], axis=2)


def parted(params: Params, name: str) -> list[np.ndarray]:
    """The inverse of `joined`, of w_qkv or conv of a memory's parameters."""
    mixed, (heads, values) = params[name], params[OUT].shape[1:]
    keys = (mixed.shape[2] - heads // mixed.shape[1] * values) // 2
    return [x.reshape(len(x), -1).T for x in np.split(mixed, (keys, 2 * keys), axis=2)]


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


def write_apart(params: Params) -> dict[str, np.ndarray]:
    """The inverse of `read_apart`."""
    weights = zip("qkv", parted(params, "w_qkv"), strict=True)
    tensors = {f"{name}_proj.weight": weight for name, weight in weights}
    if "conv" in params:
        for name, filters in zip("qkv", parted(params, "conv"), strict=True):
            tensors[f"{name}_conv1d.weight"] = filters[:, None]
    return tensors


def read_named(memory: LinearMemory, take: Take, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Matrices, whose names begin with w_, as outputs x inputs; and vectors.

    Args:
      memory: the layer; names of what it lacks are passed over.
      take: hands out arrays.
      names: ours, and theirs.
    """
    found = {}
    for ours, param in memory.table().items():
        if ours not in names:
            continue
        rest = math.prod(param.shape[1:])
        if not ours.startswith("w_"):
            stored = take(names[ours], math.prod(param.shape))
        elif ours == OUT:
            stored = take(names[ours], param.shape[0], rest)
        else:
            stored = take(names[ours], rest, param.shape[0]).T
        found[ours] = stored.reshape(param.shape)
    return found


def write_named(params: Params, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The inverse of `read_named`."""
    tensors = {}
    for ours, theirs in names.items():
        if ours in params:
            own = params[ours]
            flat = own.reshape(len(own), -1) if ours.startswith("w_") else own.reshape(-1)
            tensors[theirs] = flat if ours == OUT else flat.T
    return tensors
