"""Scan routes are permutations of neighbours, and the gate and the scans are the formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.layers import MHS
from gam_jax.layers.mhs import conv_3x3, fuse
from gam_jax.ops.scan_routes import PATTERNS, both_ways, routes
from tests.arrays import put
from tests.examples import apply, random_like
from tests.oracle import sigmoid

SIZES = [(1, 1), (1, 5), (4, 1), (3, 4), (5, 5), (8, 3)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_route_visits_every_cell_once_and_both_ways_are_reverses(pattern, size):
    found = both_ways(pattern, *size)
    for route in found:
        np.testing.assert_array_equal(np.sort(route), np.arange(size[0] * size[1]))
    np.testing.assert_array_equal(found[2:], found[:2, ::-1])


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("pattern", ["C", "X", "S"])
def test_consecutive_cells_are_neighbours(pattern, size):
    for route in routes(pattern, *size):
        row, column = np.divmod(route, size[1])
        steps = np.maximum(np.abs(np.diff(row)), np.abs(np.diff(column)))
        assert np.all(steps == 1)
        if pattern != "X":  # X moves along diagonals
            assert np.all(np.abs(np.diff(row)) + np.abs(np.diff(column)) == 1)


@jax.jit
def gated(y, threshold):
    return fuse(y, threshold, axis=0)


def fuse_formula(y, threshold):
    v = y.std(axis=0, ddof=1) / ((y - y.min(axis=0)).mean(axis=0) + 1e-5)
    return y.sum(axis=0) * np.maximum(v - threshold, 0)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.3])
def test_the_gate_equals_its_formula(threshold):
    y = np.random.default_rng(0).normal(size=(4, 3, 5))
    found = gated(put(y, jnp.float32), threshold)
    np.testing.assert_allclose(found, fuse_formula(y, threshold), rtol=1e-4, atol=1e-5)


def test_where_all_routes_agree_nothing_passes_and_gradients_are_finite():
    y = np.full((4, 2), 3, np.float32)
    np.testing.assert_array_equal(gated(y, 0.0), 0)
    assert np.all(np.isfinite(jax.jit(jax.grad(lambda y: jnp.sum(fuse(y, 0.0, axis=0))))(y)))


def norm(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale + bias


def layer_formula(p, x, layer):
    """One image [T, D], a cell at a time, in float64."""
    tokens, width = x.shape
    columns = tokens // layer.rows
    u, z = x @ p["w_in"][:, 0], x @ p["w_in"][:, 1]
    mixed = np.zeros_like(u) + p["conv_bias"]
    for r in range(layer.rows):
        for c in range(columns):
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    if 0 <= r + i < layer.rows and 0 <= c + j < columns:
                        tap = p["conv"][3 * (i + 1) + j + 1]
                        mixed[r * columns + c] += tap * u[(r + i) * columns + c + j]
    u = mixed * sigmoid(mixed)
    heads, rank = [], p["w_dt"].shape[2]
    for h, pattern in enumerate(layer.patterns):
        own, results = u @ p["w_head"][:, h], []
        for r, route in enumerate(both_ways(pattern, layer.rows, columns)):
            state, y = np.zeros((layer.state, own.shape[1])), np.zeros_like(own)
            for place in route:
                value = own[place]
                small = value @ p["w_x"][h, r]
                dt = np.log1p(np.exp(small[:rank] @ p["w_dt"][h, r] + p["dt_bias"][h, r]))
                b, c = np.split(small[rank:], 2)
                decay = np.exp(-dt * np.exp(p["a_log"][h, r]))
                state = decay * state + dt * value * b[:, None]
                y[place] = c @ state + p["skip"][h, r] * value
            results.append(y)
        heads.append(fuse_formula(np.stack(results), layer.threshold))
    flat = np.concatenate(heads, axis=1)
    flat = norm(flat, p["head_scale"].reshape(-1), p["head_bias"].reshape(-1))
    y = norm(flat @ p["w_out"].reshape(-1, width), p["scale"], p["bias"])
    return y * z * sigmoid(z)


def test_the_layer_equals_its_equations():
    layer = MHS(width=8, rows=3, patterns="CXSZ", state=2, threshold=0.2)
    params, x = random_like(layer.table()), np.random.default_rng(0).normal(size=(1, 12, 8))
    wide = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    y, _ = apply(layer, params, put(x, jnp.float32))
    wanted = layer_formula(wide, x[0], layer)
    np.testing.assert_allclose(np.asarray(y)[0], wanted, rtol=1e-3, atol=1e-4)


def test_the_convolution_is_centred_with_zeros_around():
    spot, taps = np.zeros((1, 3, 3, 1), np.float32), np.arange(9, dtype=np.float32)
    spot[0, 0, 0, 0] = 1
    y = np.asarray(jax.jit(conv_3x3)(spot, taps[:, None], np.zeros(1, np.float32)))
    np.testing.assert_array_equal(y[0, :, :, 0], [[4, 3, 0], [1, 0, 0], [0, 0, 0]])


def test_what_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ValueError, match="letters of C, X, S, Z"):
        MHS(width=8, patterns="CQ")
    with pytest.raises(ValueError, match="not divisible by 3 heads"):
        MHS(width=8, patterns="CXS")
    layer = MHS(width=4, rows=5, patterns="C", state=2)
    with pytest.raises(ValueError, match="12 tokens do not fill the 5 rows"):
        layer(random_like(layer.table()), np.zeros((1, 12, 4), np.float32))
