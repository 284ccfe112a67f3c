"""Convolutions and resizing of an axis that devices split: those of the whole, for any split."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gam_jax.ops.convolution import convolve, transposed
from gam_jax.ops.resize import LINEAR, NEAREST, enlarged, shrunk
from sharding.errors import UserError
from sharding.messages import messages_of
from tests.meshes import layout_of

DRAW = np.random.default_rng(0)


def drawn(*shape):
    return DRAW.normal(size=shape).astype(np.float32)


LINE, PLANE = drawn(2, 16, 4), drawn(1, 16, 3, 2)
WEIGHTS = {taps: drawn(taps, 4, 3) for taps in (1, 2, 3, 4, 5)}
SQUARE, GROUPED = drawn(3, 3, 2, 2), drawn(3, 2, 6)


def all_of(line, plane, axis=None):
    """Every kind of padding, stride, dilation and crop, by name."""
    convs = {
        "both sides": (3, {"pads": [(1, 1)]}),
        "one side": (4, {"pads": [(3, 0)]}),
        "the future": (4, {"pads": [(0, 3)]}),
        "beyond a shard": (5, {"pads": [(6, 6)], "dilation": 3}),
        "strided": (4, {"pads": [(1, 1)], "stride": 2}),
        "strided, cut": (1, {"pads": [(0, -1)], "stride": 2}),
        "ahead": (2, {"pads": [(-1, 2)]}),
        "spare": (3, {"pads": [(1, 1)], "stride": 2}),
    }
    found = {
        name: convolve(line, WEIGHTS[taps], axis=axis, **how) for name, (taps, how) in convs.items()
    }
    found["grouped"] = convolve(line, GROUPED, pads=[(1, 1)], groups=2, axis=axis)
    found["plane"] = convolve(plane, SQUARE, pads=[(1, 1), (1, 1)], axis=axis)
    for name, taps, stride, crop in (
        ("twice", 4, 2, (1, 1)),
        ("late", 5, 2, (3, 0)),
        ("early", 5, 1, (0, 4)),
        ("plain", 2, 2, (0, 0)),
    ):
        weight = WEIGHTS[taps]
        found[name] = transposed(line, weight, stride=stride, crops=[crop], axis=axis)
    for how in (NEAREST, LINEAR):
        found[how] = enlarged(plane, 3, how, axis)
    return found


@functools.cache
def whole():
    return jax.tree.map(np.asarray, jax.jit(all_of)(LINE, PLANE))


def split(devices):
    mesh, spread = layout_of((1, devices, 1)).mesh, PartitionSpec(None, "seq")

    def own(line, plane):
        return all_of(line, plane, "seq")

    return jax.jit(jax.shard_map(own, mesh=mesh, in_specs=spread, out_specs=spread))


@pytest.mark.parametrize(
    "devices",
    [2, pytest.param(4, marks=pytest.mark.slow), 8],
)
def test_any_split_gives_what_the_whole_gives(devices):
    found = split(devices)(LINE, PLANE)
    for name, wanted in whole().items():
        np.testing.assert_allclose(found[name], wanted, atol=2e-6, err_msg=name)


def test_a_convolution_sends_its_reach_and_no_more():
    mesh, spread = layout_of((1, 4, 1)).mesh, PartitionSpec(None, "seq")

    def own(line):
        return convolve(line, WEIGHTS[4], pads=[(1, 2)], axis="seq")

    program = jax.shard_map(own, mesh=mesh, in_specs=spread, out_specs=spread)
    sent = sorted(message.size for message in messages_of(program, LINE))
    assert sent == [4 * 2 * 4 * beside for beside in (1, 2)]


def test_linear_enlarging_is_interpolation_and_shrinking_takes_means():
    x = DRAW.normal(size=(1, 5, 1)).astype(np.float32)
    places = (np.arange(15) + 0.5) / 3 - 0.5
    wanted = np.interp(places, np.arange(5), x[0, :, 0].astype(np.float64))
    np.testing.assert_allclose(enlarged(x, 3, LINEAR)[0, :, 0], wanted, atol=1e-6)
    small = np.asarray(shrunk(PLANE[:, :, :2], 2))
    wanted = PLANE[:, 2:4, :2].astype(np.float64).mean((1, 2))
    np.testing.assert_allclose(small[:, 1, 0], wanted, atol=1e-6)
    np.testing.assert_allclose(shrunk(enlarged(x, 2), 2), x, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: convolve(x, WEIGHTS[3], axis="seq"), "do not make one output"),
        (lambda x: convolve(x, WEIGHTS[4], pads=[(1, 1)], stride=3, axis="seq"), "stride 3"),
        (lambda x: transposed(x, WEIGHTS[3], axis="seq"), "crops that sum to 2"),
        (lambda x: enlarged(x, 2, "cubic"), "nearest or linear"),
        (lambda x: shrunk(x, 3), "3 does not divide"),
    ],
)
def test_what_does_not_fit_a_split_is_refused(call, says):
    with pytest.raises(UserError, match=says):
        call(LINE)
