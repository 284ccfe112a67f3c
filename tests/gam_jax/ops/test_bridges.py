"""Anchors and bridges: the law of the whole where the signal forgets enough, on any devices."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gam_jax.ops.bridges import (
    autoregressive_covariance,
    bridge,
    bridged_covariance,
    draw_anchors,
    draw_segments,
    joined,
)
from sharding.axes import Axes
from sharding.errors import UserError
from sharding.messages import messages_of
from tests.meshes import layout_of

ONE, TWO, THREE = (0.7,), (1.2, -0.6), (0.5, 0.2, -0.3)
SPAN, SEGMENTS = 5, 8


@pytest.mark.parametrize("coefficients", [ONE, TWO, THREE])
def test_covariances_are_those_of_the_recursion(coefficients):
    """The oracle runs the recursion on pulses until it has forgotten its start."""
    pulse = np.zeros(400)
    for t in range(400):
        past = [c * pulse[t - k] for k, c in enumerate(coefficients, 1) if t >= k]
        pulse[t] = (t == 0) + sum(past)
    wanted = [np.sum(pulse[lag:] * pulse[: 400 - lag]) for lag in range(9)]
    found = autoregressive_covariance(coefficients, 9)
    np.testing.assert_allclose(found[0], wanted, atol=1e-12)
    np.testing.assert_array_equal(found, found.T)


@pytest.mark.parametrize("coefficients", [ONE, TWO, THREE])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_law_is_the_whole_one_with_anchors_as_long_as_the_memory(coefficients, width):
    covariance = autoregressive_covariance(coefficients, 4 * SPAN + width)
    found = bridged_covariance(covariance, SPAN, width)
    off = np.abs(found - covariance)
    if width >= len(coefficients):
        assert off.max() < 1e-12
    else:
        assert off.max() > 0.01 * covariance[0, 0]
        for cut in range(
            0, 4 * SPAN, SPAN
        ):  # a segment with both its anchors is right all the same
            part = slice(cut, cut + SPAN + width)
            assert off[part, part].max() < 1e-12


@pytest.fixture(scope="module")
def drawn():
    covariance = autoregressive_covariance(TWO, SEGMENTS * SPAN + 2)
    made = bridge(covariance, SPAN, 2)
    anchors = draw_anchors(covariance, SPAN, 2, jax.random.key(0), 4000)
    return covariance, made, anchors, draw_segments(made, anchors, jax.random.key(1))


def test_what_is_drawn_has_the_law_that_is_computed(drawn):
    covariance, _, _, segments = drawn
    signal = np.asarray(joined(segments, 2), np.float64)
    assert signal.shape == (4000, len(covariance))
    found = signal.T @ signal / 4000
    # A product of two normals has a deviation of at most sqrt(2) variances.
    assert np.abs(found - covariance).max() < 6 * np.sqrt(2 / 4000) * covariance[0, 0]


def test_neighbours_agree_at_their_anchor_to_the_bit(drawn):
    segments = np.asarray(drawn[3])
    np.testing.assert_array_equal(segments[:, :-1, -2:], segments[:, 1:, :2])


def test_segments_on_eight_devices_are_those_of_one_and_nothing_is_sent(drawn):
    _, made, anchors, whole = drawn

    def segments(anchors):
        return draw_segments(made, anchors, jax.random.key(1), Axes(seq="seq"))

    spread = PartitionSpec(None, "seq")
    mesh = layout_of((1, 8, 1)).mesh
    program = jax.jit(
        jax.shard_map(segments, mesh=mesh, in_specs=PartitionSpec(), out_specs=spread)
    )
    np.testing.assert_allclose(program(anchors), whole, atol=2e-6)
    assert not messages_of(program, anchors)
    alone = jax.jit(lambda a: draw_segments(made, a, jax.random.key(1))).lower(anchors[:, :2])
    own = program.lower(anchors).compile().cost_analysis()["flops"]
    assert own < 1.1 * alone.compile().cost_analysis()["flops"]


def test_rows_on_eight_devices_are_those_of_one(drawn):
    """Each row has noise of its own, whatever device it lies on."""
    _, made, anchors, whole = drawn

    def segments(anchors):
        return draw_segments(made, anchors, jax.random.key(1), Axes(data="data"))

    mesh, rows = layout_of((8, 1, 1)).mesh, PartitionSpec("data")
    program = jax.jit(jax.shard_map(segments, mesh=mesh, in_specs=rows, out_specs=rows))
    np.testing.assert_allclose(program(anchors), whole, atol=2e-6)


def test_what_does_not_fit_is_refused(drawn):
    _, made, anchors, _ = drawn
    with pytest.raises(UserError, match="grows without bound"):
        autoregressive_covariance((1.0,), 4)
    with pytest.raises(UserError, match="1 <= width < span"):
        bridge(np.eye(9), 3, 3)
    with pytest.raises(UserError, match=r"12 frames are not M x 5 \+ 1"):
        bridged_covariance(np.eye(12), 5, 1)
    with pytest.raises(UserError, match="anchors of 1 frames"):
        draw_segments(made, anchors[..., :1], jax.random.key(0))
