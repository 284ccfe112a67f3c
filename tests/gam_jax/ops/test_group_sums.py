"""The kernel of sums by group, interpreted: its gradients over devices and its compilers are in
`test_grouped`."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.ops.group_sums import ROWS, sums_by_group, visits_of
from tests.arrays import put

TILES = 4
visits = jax.jit(functools.partial(visits_of, tiles=TILES))


@given(st.lists(st.integers(0, TILES * ROWS // 3), min_size=3, max_size=3))
def test_every_row_of_a_group_is_visited_once_and_every_group_too(sizes):
    found = [np.asarray(x) for x in visits(put(sizes))]
    rows = []
    for group, tile, begin, end in zip(*found, strict=True):
        rows += [(group, row) for row in range(begin, end)]
        assert begin >= end or tile * ROWS <= begin < end <= (tile + 1) * ROWS
    owners = np.repeat(range(3), sizes)
    assert rows == list(zip(owners, range(sum(sizes)), strict=True))
    assert sorted(set(found[0])) == [0, 1, 2]
    assert (np.diff(found[0]) >= 0).all()


@pytest.mark.parametrize("shared", [False, True])
def test_side_by_side_each_is_that_of_its_rows(shared):
    """Rows beyond the groups are no numbers, and in no sum."""
    random = np.random.default_rng(0)
    x, y = (random.normal(size=(2, 150, n)).astype(np.float32) for n in (6, 7))
    sizes = np.array([[20, 0, 120], [0, 140, 0]], np.int32)
    sizes[1] = sizes[0] if shared else sizes[1]
    x[:, 140:] = np.nan
    found = jax.vmap(
        functools.partial(sums_by_group, interpret=True), (0, 0, None if shared else 0)
    )(x, y, sizes[0] if shared else sizes)
    for i, (own, of_row) in enumerate(zip(sizes, found, strict=True)):
        ends = np.cumsum(own)
        for begin, end, total in zip(ends - own, ends, of_row, strict=True):
            np.testing.assert_allclose(total, x[i, begin:end].T @ y[i, begin:end], atol=2e-5)
