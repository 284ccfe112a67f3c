"""The program of one device gives the same run on every mesh, dropout and clipping included."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest

from gam_jax.layers import GAM, Block, Chunked
from gam_jax.model import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.train import init_state, make_eval_step, make_train_step
from sharding.mesh import make_mesh
from tests.examples import random_like

MODEL = LanguageModel(
    Block(GAM(slots=16)), width=16, depth=2, vocab=32, context=16, dropout=0.1, init="published"
)
STEPS = 3


def batches():
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        tokens = random.integers(0, MODEL.vocab, (8, 17)).astype(np.int32)
        weights = np.ones((8, 16), np.float32)
        yield {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


@functools.cache
def run(shape):
    """Losses, last parameters and evaluation after a few steps."""
    mesh = make_mesh(*shape)
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, MODEL.table())
    state = init_state(MODEL, optimizer, mesh, seed=0)
    step = make_train_step(MODEL, optimizer, mesh)
    losses = []
    for batch in batches():
        state, metrics = step(state, batch)
        losses.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    batch["weights"][5:] = 0
    evaluation = make_eval_step(MODEL, mesh)(state.params, batch)
    return losses, jax.tree.map(np.asarray, state.params), [float(x) for x in evaluation]


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 4, 1), (1, 1, 4), (2, 2, 2)], ids=str)
def test_losses_gradients_and_parameters_equal_those_of_one_device(shape):
    losses, params, evaluation = run((1, 1, 1))
    other_losses, other_params, other_evaluation = run(shape)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(other_evaluation, evaluation, rtol=1e-5)
    chex.assert_trees_all_close(other_params, params, rtol=1e-4, atol=1e-5)


def test_accumulated_gradients_equal_those_of_the_whole_batch():
    plain = dataclasses.replace(MODEL, dropout=0.0, block=Block(GAM(slots=16)))
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, plain.table())
    values = []
    for accumulate in (1, 4):
        state = init_state(plain, optimizer, make_mesh(), seed=0)
        step = make_train_step(plain, optimizer, make_mesh(), accumulate)
        _, metrics = step(state, next(batches()))
        values.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)


def test_a_chunked_stack_has_the_loss_of_the_whole_on_any_mesh():
    plain = dataclasses.replace(MODEL, dropout=0.0, block=Block(GAM(slots=16)))
    chunked = dataclasses.replace(plain, block=Chunked(Block(GAM(slots=16)), size=5))
    params, batch = random_like(plain.table()), next(batches())
    losses = [
        float(make_eval_step(model, mesh)(params, batch)[0])
        for model, mesh in (
            (plain, make_mesh()),
            (chunked, make_mesh()),
            (chunked, make_mesh(2, 1, 2)),
            (chunked, make_mesh(2, 2, 1)),
        )
    ]
    np.testing.assert_allclose(losses[1:], losses[0], rtol=1e-5)


def test_the_seed_decides_the_start():
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, MODEL.table())
    one, same, other = (init_state(MODEL, optimizer, make_mesh(), seed) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(one.params, same.params)
    assert np.any(one.params["embedding"] != other.params["embedding"])
