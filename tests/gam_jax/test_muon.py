"""Muon makes the updates of matrices orthogonal, and leaves all else to Adam."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.muon import ADAM_SIZE, matrix_sides, orthogonalised, scale_by_muon
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import Param, zeros
from gam_jax.training.state import init_state
from gam_jax.training.step import make_train_step
from tests.arrays import compiled, put
from tests.examples import random_like
from tests.meshes import ONE, assert_leaves_close, layout_of

TABLE = {
    "in": Param((2, 8, 12), ("layer", "embed", "ffn"), zeros),
    "experts": Param((2, 3, 8, 12), ("layer", "expert", "embed", "ffn"), zeros),
    "gate": Param((8, 2, 4), ("embed", None, "channel"), zeros),
    "heads": Param((2, 3, 8), ("heads", None, "embed"), zeros),
    "inputs": Param((8, 2, 2, 3), ("embed", None, "heads", None), zeros),
    "shared": Param((8, 2, 4), ("embed", None, None), zeros),
    "conv": Param((3, 8), (None, "channel"), zeros),
    "embedding": Param((16, 8), ("vocab", "embed"), zeros),
    "bias": Param((8,), ("embed",), zeros, decay=False),
}
MATRICES = {
    "in": ((1,), (2,)),
    "experts": ((2,), (3,)),
    "gate": ((0,), (2,)),
    "heads": ((2,), (0, 1)),
    "inputs": ((0,), (2, 3)),
    "shared": ((0,), (2,)),
    "conv": None,
    "embedding": None,
    "bias": None,
}


def test_a_matrix_has_the_residual_stream_on_one_side():
    assert {name: matrix_sides(param) for name, param in TABLE.items()} == MATRICES


@pytest.mark.slow
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_singular_values_come_near_to_one_and_vectors_stay(rows, columns, seed):
    random = np.random.default_rng(seed)
    u, _, vt = np.linalg.svd(random.normal(size=(rows, columns)), full_matrices=False)
    values = random.uniform(0.3, 1, min(rows, columns))
    found = np.asarray(compiled(orthogonalised, put([(u * values) @ vt], jnp.float32)))[0]
    inside = u.T @ found @ vt.T
    np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-4)
    assert ((np.diag(inside) > 0.6) & (np.diag(inside) < 1.3)).all()


@pytest.fixture(scope="module")
def updates():
    """Two steps' last updates: of Muon and of Adam."""
    betas = 0.8, 0.95, 1e-8
    found = []
    for rule in (scale_by_muon(TABLE, 0.9, *betas), optax.scale_by_adam(*betas)):
        params = random_like(TABLE)
        state = compiled(rule.init, params)
        for seed in (1, 2):
            update, state = jax.jit(rule.update)(random_like(TABLE, seed), state, params)
        found.append(update)
    return found


def test_all_but_matrices_is_given_adam_s_update(updates):
    muon, adam = updates
    for name, sides in MATRICES.items():
        same = np.array_equal(muon[name], adam[name])
        assert same is (sides is None), name


def test_an_update_is_the_orthogonal_part_of_nesterov_s_momentum_at_adam_s_size(updates):
    first, second = (np.asarray(random_like(TABLE, seed)["in"]) for seed in (1, 2))
    momentum = 0.9 * (0.9 * 0.1 * first + 0.1 * second) + 0.1 * second
    for found, want in zip(np.asarray(updates[0]["in"]), momentum, strict=True):
        u, _, vt = np.linalg.svd(want, full_matrices=False)
        inside = np.diag(u.T @ found @ vt.T) / (ADAM_SIZE * np.sqrt(12))
        assert ((inside > 0.6) & (inside < 1.3)).all()
        root_mean_square = np.sqrt(np.mean(found**2))
        assert 0.6 * ADAM_SIZE < root_mean_square < 1.3 * ADAM_SIZE


def test_every_matrix_of_a_stack_is_updated_alone():
    stacked = np.asarray(random_like(TABLE)["in"])
    whole = np.asarray(compiled(orthogonalised, stacked))
    for layer in range(2):
        one = compiled(orthogonalised, stacked[layer : layer + 1])
        np.testing.assert_allclose(whole[layer : layer + 1], one, atol=1e-5)


def test_a_step_is_the_same_with_parameters_and_state_in_shards():
    model = LanguageModel(Block(GAM(slots=16)), width=16, depth=2, vocab=32)
    optimizer = make_optimizer(OptimizerConfig(kind="muon", warmup=1, eps=1e-4), 10, model.table())
    tokens = np.random.default_rng(0).integers(0, 32, (8, 33)).astype(np.int32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    batch["weights"] = np.ones((8, 32), np.float32)
    found = []
    for shape, preset in (ONE, ((2, 2, 2), "fully_sharded+sequence+tensor")):
        layout = layout_of(shape, preset)
        state = init_state(model, optimizer, layout, seed=0)
        if (shape, preset) == ONE:
            start = jax.tree.map(np.asarray, state.params)
        step = make_train_step(model, optimizer, layout)
        for _ in range(2):  # the rate of the first step is 0
            state, _ = step(state, batch)
        found.append(jax.tree.map(np.subtract, state.params, start))
    assert_leaves_close(found[1], found[0], 2e-3)


def test_matrices_and_their_decay_have_a_rate_of_their_own():
    config = OptimizerConfig(
        kind="muon", learning_rate=0.1, warmup=0, weight_decay=0.5, clip=0.0, matrix_rate=3.0
    )
    optimizer = make_optimizer(config, 10, TABLE)
    params, grads = random_like(TABLE), random_like(TABLE, 1)
    found, _ = compiled(optimizer.update, grads, compiled(optimizer.init, params), params)
    rule = scale_by_muon(TABLE, config.momentum, config.beta1, config.beta2, config.eps)
    ways, _ = compiled(rule.update, grads, compiled(rule.init, params))
    for name, sides in MATRICES.items():
        rate = 0.1 * (1 if sides is None else 3.0)
        decay = 0.5 if TABLE[name].decay else 0.0
        want = -rate * (np.asarray(ways[name]) + decay * np.asarray(params[name]))
        np.testing.assert_allclose(found[name], want, rtol=1e-4, atol=1e-6)
