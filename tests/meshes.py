"""Every small mesh, which of them are always tested, and what makes two runs the same."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from typing import Any

import jax
import numpy as np
import pytest

from gam_jax.models.base import Model
from gam_jax.params import Params, param_specs, shardings
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.overlap import OVERLAPS
from sharding.parallel import Parallel

SHAPES = tuple(
    shape for shape in itertools.product((1, 2, 4, 8), repeat=3) if np.prod(shape) in (1, 2, 4, 8)
)
"""Every factorisation of 1, 2, 4 and 8 devices into data x seq x tensor."""

EXPERT_SHAPES = tuple(
    (data, seq, tensor, 1, expert)
    for data, seq, tensor, expert in (
        (1, 1, 1, 8),
        (1, 1, 2, 4),
        (2, 2, 1, 2),
        (1, 2, 2, 2),
        (2, 1, 1, 4),
        (1, 1, 1, 2),
    )
)
"""Some with experts, and rows, over devices; one stream."""

ROUNDING = 1e-9
"""Of float32 sums of terms of about 0.01, where these cancel."""

ONE = ((1, 1, 1), "data+sequence+tensor")

AXES = ("data", "seq", "tensor", "stream", "expert")
EVERY_AXIS = (*AXES, "pipe")
STATES = ("data", "zero1", "fully_sharded")
TENSORS = ("tensor", "tensor_tokens")
WORDS = (*STATES, "sequence", *TENSORS)
"""Of presets."""
RINGS = tuple(f"tensor_tokens+{way}" for way in OVERLAPS[1:])
"""tensor_tokens and `parallel.overlap`, as tests write both in one."""

COVERING = (
    ((8, 1, 1), "zero1+sequence+tensor"),
    ((1, 8, 1), "fully_sharded+sequence+tensor_tokens"),
    ((1, 1, 8), "data+sequence+tensor_tokens"),
    ((2, 2, 2), "data+sequence+tensor"),
    ((2, 2, 2), "fully_sharded+sequence+tensor_tokens"),
    ((4, 1, 2), "zero1+sequence+tensor_tokens"),
    ((1, 2, 4), "zero1+sequence+tensor"),
)
"""Meshes and presets that are always tested: each of three axes is split under each word."""


def pairs(cases: Iterable[tuple[tuple[int, ...], str]]) -> set[tuple[str, str]]:
    """(mesh axis, preset word): the axes that are split in some case, under the words of it."""
    return {
        (axis, word)
        for shape, preset in cases
        for axis, size in zip(EVERY_AXIS, shape, strict=False)
        if size > 1
        for word in preset.split("+")
        if word not in OVERLAPS
    }


def slow_unless_chosen(cases: Iterable[tuple], chosen: Collection[tuple]) -> list:
    """Parameters for all the cases; those that are not chosen are marked slow.

    Raises:
      ValueError: a chosen case is no case.
    """
    cases = list(cases)
    if unknown := [case for case in chosen if case not in cases]:
        raise ValueError(f"{unknown}: chosen, and none of the cases")
    mark = {True: (), False: pytest.mark.slow}
    return [
        pytest.param(*case, id=" ".join(map(str, case)), marks=mark[case in chosen])
        for case in cases
    ]


def layout_of(
    shape: tuple[Any, ...],
    preset: str = ONE[1],
    rules: str = "",
    schedule: str = "1f1b",
    turns: int = 1,
    stages: str = "",
    shards: str = "",
    bits: str = "",
) -> Layout:
    """A layout on the first devices: data, seq, tensor and, if not 1, stream, expert and pipe.

    A preset may end with a word of `OVERLAPS`. Several numbers for data are its levels.
    """
    sizes = dict(zip(EVERY_AXIS, (*shape, 1, 1, 1), strict=False))
    words = preset.split("+")
    overlap = words.pop() if words[-1] in OVERLAPS else OVERLAPS[0]
    parallel = Parallel(
        "+".join(words), rules, schedule, turns, stages, overlap=overlap, shards=shards, bits=bits
    )
    return Layout(make_mesh(**sizes), parallel)


def laid_out(model: Model, params: Any, layout: Layout) -> Params:
    """Parameters as a mesh holds them: they are drawn once, and not by a program of each mesh."""
    return jax.device_put(params, shardings(param_specs(model.table(), layout), layout))


def mean_loss(sums: Any) -> float:
    """Of what an evaluation step has summed."""
    total, count = sums["loss"]
    return float(total) / float(count)


def assert_leaves_close(
    found: Any, wanted: Any, tolerance: float = 1e-5, floor: float = 0.0
) -> None:
    """Each leaf, relative to its own largest element, where that is above rounding or `floor`."""

    def close(path: Any, a: np.ndarray, b: np.ndarray) -> None:
        a, b = np.asarray(a), np.asarray(b)
        error, scale = np.max(np.abs(a - b), initial=0), np.max(np.abs(b), initial=0)
        assert error <= tolerance * scale + ROUNDING + floor, (
            jax.tree_util.keystr(path),
            error,
            scale,
        )

    jax.tree_util.tree_map_with_path(close, found, wanted)
