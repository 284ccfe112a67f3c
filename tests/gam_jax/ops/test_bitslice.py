"""Digits are the number, their products the product, and fewer of them are zero in Booth's code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.ops.bitslice import booth_digits, cycles, digit_matmul, digits, nonzero_digits
from tests.arrays import put

EVERY = np.arange(-128, 128, dtype=np.int8)


@pytest.mark.parametrize("code", [digits, booth_digits])
def test_the_digits_of_all_numbers_are_the_numbers(code):
    found = np.asarray(jax.jit(code)(put(EVERY)), np.int64)
    np.testing.assert_array_equal(found @ 4 ** np.arange(4), EVERY)
    assert abs(found).max() <= 2


def test_it_has_fewer_digits_than_booths():
    own = jax.jit(nonzero_digits)(put(EVERY))
    booth = np.sum(np.asarray(jax.jit(booth_digits)(put(EVERY))) != 0, -1)
    assert np.mean(own) == pytest.approx(2.91796875)
    assert np.mean(booth) == 3.0
    assert cycles(8, 2.0) == 4


@pytest.mark.parametrize("kind", ["random", "lowest"])
def test_the_product_is_that_of_whole_numbers_bit_for_bit(kind):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in ((5, 300), (300, 7)))
    if kind == "lowest":
        a, b = np.full_like(a, -128), np.full_like(b, -128)
    found = jax.jit(digit_matmul)(put(a), put(b))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, a.astype(np.int32) @ b.astype(np.int32))


@pytest.mark.parametrize("wrong", [0, 1])
def test_other_dtypes_are_refused(wrong):
    arrays = [np.zeros((2, 2), np.int8)] * 2
    arrays[wrong] = np.zeros((2, 2), np.int32)
    with pytest.raises(TypeError, match="give int8"):
        digit_matmul(*arrays)
