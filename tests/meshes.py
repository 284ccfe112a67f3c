"""Every small mesh, and what it means that two runs are the same."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np

from sharding.layout import Layout, Parallel
from sharding.mesh import make_mesh

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


def layout_of(shape: tuple[int, ...], preset: str = ONE[1], rules: str = "") -> Layout:
    """A layout on the first devices: data, seq, tensor and, if not 1, stream and expert."""
    data, seq, tensor, stream, expert = (*shape, 1, 1)[:5]
    mesh = make_mesh(data, seq, tensor, stream=stream, expert=expert)
    return Layout(mesh, Parallel(preset, rules))


def assert_leaves_close(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    """Each leaf, relative to its own largest element, where that is above rounding."""

    def close(path: Any, a: np.ndarray, b: np.ndarray) -> None:
        error, scale = np.max(np.abs(a - b), initial=0), np.max(np.abs(b), initial=0)
        assert error <= tolerance * scale + ROUNDING, (jax.tree_util.keystr(path), error, scale)

    jax.tree_util.tree_map_with_path(close, found, wanted)
