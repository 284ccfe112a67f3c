"""One matrix, and nothing."""

from __future__ import annotations

import jax
import numpy as np

from gam_jax.layers import MLP, Block, Linear, NoOp
from tests.arrays import put
from tests.examples import random_like


def test_a_matrix_is_a_matrix_and_nothing_adds_nothing():
    linear, block = Linear(width=8), Block(NoOp(), MLP(hidden=4), width=8)
    params, own = random_like(linear.table()), random_like(block.table())
    assert set(own) == {"ffn_norm", "ffn"}  # what adds nothing has no norm
    x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)

    @jax.jit
    def both(params, own, x):
        ffn = block.ffn(own["ffn"], block.norm(own["ffn_norm"], x)[0])[0]
        return linear(params, x)[0], NoOp()({}, x)[0], block(own, x)[0], x + ffn

    y, nothing, whole, alone = map(np.asarray, both(params, own, put(x)))
    np.testing.assert_allclose(y, x @ np.asarray(params["weight"]), rtol=1e-5, atol=1e-6)
    assert not nothing.any()
    np.testing.assert_array_equal(whole, alone)
