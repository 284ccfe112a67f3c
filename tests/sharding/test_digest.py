"""The digest of an array: of its values and their places, not of how it is cut."""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.checkpoint.digest import add, digest

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint8", "bool", "float64", "int64")


def array(shape, dtype="float32", seed=0):
    values = np.random.default_rng(seed).normal(0, 50, size=shape)
    return values.astype(jnp.dtype(dtype))


def plainly(x: np.ndarray) -> int:
    """The sum of the definition, number by number, in Python's integers."""
    words = x.reshape(x.shape or (1,)).view(f"u{x.itemsize}")
    return (
        sum(
            int(words[index]) * math.prod(factor(d, i) for d, i in enumerate(index))
            for index in itertools.product(*map(range, words.shape))
            if x.ndim
        )
        % 2**64
    )


def factor(dim: int, i: int) -> int:
    """SplitMix64 of the position, made odd."""
    x = (i + 1 + (dim << 40)) * 0x9E3779B97F4A7C15 % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return (x ^ x >> 31) | 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_it_is_the_sum_that_it_says(dtype):
    x = array((3, 4, 5), dtype)
    assert digest(x) == plainly(x)


@pytest.mark.parametrize("dtype", DTYPES)
@given(cuts=st.tuples(st.integers(0, 6), st.integers(0, 5)), order=st.permutations(range(4)))
def test_any_cut_in_any_order_adds_up_to_the_whole(dtype, cuts, order):
    x = array((6, 5, 2), dtype)
    rows, columns = ((0, cuts[0], 6), (0, cuts[1], 5))
    parts = [
        digest(x[a:b, c:d], (a, c, 0))
        for a, b in itertools.pairwise(rows)
        for c, d in itertools.pairwise(columns)
    ]
    assert add([parts[i] for i in order]) == digest(x)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_one_bit_changed_anywhere_changes_it(dtype, data):
    x = array((7, 6), dtype)
    content = bytearray(x.tobytes())
    at = data.draw(st.integers(0, 8 * len(content) - 1))
    content[at // 8] ^= 1 << at % 8
    changed = np.frombuffer(bytes(content), np.uint8).view(x.dtype).reshape(x.shape)
    assert digest(changed) != digest(x)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[::-1],
        lambda x: x[:, ::-1],
        lambda x: np.roll(x, 1),
        lambda x: x.T.reshape(x.shape),
        lambda x: -x,
        lambda x: np.where(np.arange(x.size).reshape(x.shape) < 2, -x, x),
        lambda x: np.zeros_like(x),
    ],
    ids=["rows", "columns", "shifted", "transposed", "signs", "two signs", "zeros"],
)
def test_values_in_other_places_change_it(change):
    x = array((16, 16))
    assert digest(change(x)) != digest(x)


def test_both_signs_of_zero_and_any_bits_of_not_a_number_count():
    assert digest(np.float32([0.0])) != digest(np.float32([-0.0]))
    assert digest(np.float32([np.nan])) != digest(-np.float32([np.nan]))


def test_a_scalar_is_its_own_bits():
    assert digest(np.int32(40)) == 40
