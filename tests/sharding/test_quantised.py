"""Blocks of few bits, beside the equations in float64; sums in hops, beside sums."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from sharding import quantised, zero
from sharding.errors import UserError
from sharding.mesh import make_mesh
from sharding.parallel import Parallel
from tests.meshes import layout_of
from tests.quantised_oracle import relative, rounded

LEVELS = {8: ("data",), (2, 4): ("data_1", "data_0"), (2, 2, 2): ("data_2", "data_1", "data_0")}
"""Mesh -> its axes, the innermost first."""


@settings(max_examples=30)
@given(
    count=st.sampled_from([1, 255, 700]),
    bits=st.sampled_from(quantised.CHOICES),
    seed=st.integers(0, 99),
)
def test_the_codec_is_the_equations_and_errs_by_half_a_step(count, bits, seed):
    random = np.random.default_rng(seed)
    x = (random.normal(size=count) * 10.0 ** random.integers(-20, 20)).astype(np.float32)
    coded = jax.jit(quantised.coded, static_argnums=1)(x, bits)
    assert coded.size == quantised.coded_bytes(count, bits)
    found = np.asarray(jax.jit(quantised.decoded, static_argnums=(1, 2))(coded, bits, count))
    wanted, steps = rounded(x, bits, quantised.blocks_of(count, bits)[1])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=0)
    extreme = x >= steps * (2 ** (bits - 1) - 0.5)
    assert np.all(np.abs(found - x) <= steps * np.where(extreme, 1, 0.5) * (1 + 1e-5))


def test_blocks_hold_at_most_256_numbers_and_waste_less_than_a_byte_each():
    for bits in quantised.CHOICES:
        for count in range(1, 2000):
            blocks, size = quantised.blocks_of(count, bits)
            assert blocks == math.ceil(count / 256)
            assert size <= 256
            assert size * bits % 8 == 0
            assert 0 <= blocks * size - count < blocks * (8 // bits)


@pytest.mark.parametrize("bits", quantised.CHOICES)
def test_zeros_stay_zeros_and_what_is_not_finite_is_seen(bits):
    x = np.zeros((4, 256), np.float32)
    x[1, 3], x[2, 5], x[3, 0] = np.nan, np.inf, 1e-44
    found = np.asarray(quantised.decoded(quantised.coded(x, bits), bits, 256))
    assert np.all(found[0] == 0)
    assert np.all(np.isnan(found[1:3]))
    assert np.all(np.abs(found[3]) < 1e-40)


def summed(terms, data, bits, scatter=quantised.reduce_scatter):
    """Each device's term [8, N, M] summed; parts of dimension 1 stay where they are."""
    axes = LEVELS[data]
    program = jax.shard_map(
        lambda x: scatter(x[0], axes, 1, bits),
        mesh=make_mesh(data),
        in_specs=PartitionSpec(axes[::-1]),
        out_specs=PartitionSpec(None, axes),
    )
    return np.asarray(jax.jit(program)(terms))


def in_order(x, axes, dim, bits):
    return zero.scattered(x, dim - x.ndim, axes)


@pytest.mark.parametrize("data", LEVELS)
def test_hops_without_rounding_are_a_reduce_scatter(data):
    random = np.random.default_rng(0)
    terms = random.integers(-1000, 1000, (8, 3, 16)).astype(np.float32)  # sums are exact
    found = summed(terms, data, 0)
    np.testing.assert_array_equal(found, summed(terms, data, 0, in_order))
    np.testing.assert_array_equal(found, terms.sum(0))
    if data != (2, 2, 2):  # whose inner levels are summed two by two
        terms = random.normal(size=terms.shape).astype(np.float32)
        np.testing.assert_array_equal(summed(terms, data, 0), summed(terms, data, 0, in_order))


@functools.cache
def gaussian():
    terms = np.random.default_rng(1).normal(size=(8, 8, 4096)).astype(np.float32)
    return terms, terms.astype(np.float64).sum(0)


@pytest.mark.parametrize(("data", "error"), [(8, 0.112), ((2, 4), 0.159), ((2, 2, 2), 0.159)])
def test_four_bits_err_as_published_and_the_sum_is_a_true_one(data, error):
    terms, total = gaussian()
    found = summed(terms, data, 4)
    assert relative(found, total) == pytest.approx(error, abs=0.005)
    assert (found * total).sum() / (total**2).sum() == pytest.approx(1, abs=0.01)


def test_inner_levels_go_first_and_the_outermost_last():
    assert quantised.hops(("a", "b", "c")) == (("a", "b"), ("c",))
    assert quantised.hops(("a",)) == (("a",),)
    assert quantised.hops(()) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("weight:8", "unknown 'weight'; did you mean 'weights'?"),
        ("weights:3", "weights:3: give 4 or 8"),
        ("weights", "'weights' should look like weights:2"),
        ("gradients:4,gradients:8", "'gradients' is given twice"),
    ],
)
def test_bits_that_there_are_not_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        Parallel(bits=text)


@pytest.mark.parametrize(
    ("shape", "preset", "bits", "words"),
    [
        ((8, 1, 1), "data", "gradients:4", "no gradients are scattered"),
        ((8, 1, 1), "zero1", "weights:8", "no weights are gathered"),
    ],
)
def test_bits_of_what_is_not_sent_are_refused(shape, preset, bits, words):
    with pytest.raises(UserError, match=words):
        layout_of(shape, preset, bits=bits)


def test_one_device_sends_nothing_and_decoding_sends_all_as_it_is():
    assert layout_of((1, 1, 1), bits="weights:8").degrees.weights == 1
    assert layout_of((8, 1, 1), "fully_sharded", bits="weights:8").whole.parallel.bits == ""


def test_a_dtype_of_sixteen_bits_comes_back_in_its_own():
    x = jnp.arange(16, dtype=jnp.bfloat16)
    assert quantised.decoded(quantised.coded(x, 8), 8, 16, x.dtype).dtype == x.dtype
