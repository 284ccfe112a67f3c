"""Rotary positions: what turns, how far, and how it is stretched."""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest

from gam_jax.convert.fields import Fields
from gam_jax.convert.positions import read_positions, written_positions
from gam_jax.ops.rotary import Positions, rotary
from tests.arrays import put

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "positions"


def _maker():
    spec = importlib.util.spec_from_file_location("positions", GOLDEN.with_suffix(".py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = _maker()
every_kind = pytest.mark.parametrize("name", MADE.CONFIGS)


def of_config(name):
    return read_positions(Fields(MADE.config_of(name)), MADE.SIZE, 2048)


@every_kind
def test_angles_are_those_of_transformers_below_at_and_far_above_the_training(name):
    theta, positions, _ = of_config(name)
    with np.load(GOLDEN.with_suffix(".npz")) as expected:
        for length in MADE.LENGTHS:
            own = positions.for_length(length)
            speeds = expected[f"{name}/{length}/speeds"]
            np.testing.assert_allclose(own.speeds(theta, MADE.SIZE), speeds, rtol=1e-6)
            np.testing.assert_allclose(own.scale, expected[f"{name}/{length}/scale"], rtol=1e-6)


@every_kind
def test_positions_are_written_as_they_were_read(name):
    turned = of_config(name)
    written = Fields({"model_type": "llama", **written_positions("Any", turned, MADE.SIZE)})
    assert read_positions(written, MADE.SIZE, 2048) == turned


@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("turned", [0, 4])
def test_pairs_are_turned_as_complex_numbers_are(turned, neighbours):
    """Against complex numbers in float64: x + iy times exp(i place angle)."""
    draw = np.random.default_rng(0)
    x, places = draw.normal(size=(2, 5, 3, 8)), draw.integers(0, 900, (2, 5))
    positions = Positions(turned=turned, neighbours=neighbours, scale=1.5)
    turn = jax.jit(rotary, static_argnums=(2, 3))
    found = np.asarray(turn(np.float32(x), put(places), 100.0, positions))
    channels = turned or 8
    own = (
        x[..., :channels].reshape(2, 5, 3, -1, 2)
        if neighbours
        else np.stack(np.split(x[..., :channels], 2, axis=-1), axis=-1)
    )
    speeds = 100.0 ** (-np.arange(0, channels, 2) / channels)
    factor = 1.5 * np.exp(1j * places[..., None, None] * speeds)
    both = (own[..., 0] + 1j * own[..., 1]) * factor
    pairs = [both.real, both.imag]
    expected = (
        np.stack(pairs, axis=-1).reshape(2, 5, 3, channels)
        if neighbours
        else np.concatenate(pairs, axis=-1)
    )
    np.testing.assert_allclose(found[..., :channels], expected, atol=2e-4)
    np.testing.assert_array_equal(found[..., channels:], np.float32(x[..., channels:]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "axial"}, "kind 'axial' is not one of default"),
        ({"turned": 3}, "turned=3 is odd"),
        ({"kind": "llama3", "fast": 1.0, "slow": 1.0}, "fast=1 must be above slow=1"),
        ({"kind": "longrope"}, "short is for kind='longrope', which needs it"),
        ({"short": (1.0,)}, "short is for kind='longrope'"),
        ({"kind": "longrope", "short": (1.0,), "long": (-1.0,)}, "long must hold finite numbers"),
        ({"factor": 0.0}, "factor"),
    ],
)
def test_positions_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Positions(**fields)


def test_heads_that_cannot_be_turned_so_are_refused():
    with pytest.raises(ValueError, match="6 turned channels in a head of 4"):
        Positions(turned=6).speeds(100.0, 4)
    with pytest.raises(ValueError, match="short has 3 numbers, and there are 2 pairs"):
        Positions(kind="longrope", short=(1.0,) * 3, long=(1.0,) * 3).speeds(100.0, 4)
