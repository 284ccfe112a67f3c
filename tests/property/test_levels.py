"""All degrees over a data axis in levels train as replicated data does, and send their formula."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import count_params
from gam_jax.traffic import state_bytes, step_bytes, step_traffic
from gam_jax.training.state import abstract_state, init_state, state_shardings
from gam_jax.training.step import make_eval_step, make_train_step
from sharding.degrees import Degrees, held, legal
from sharding.layout import bytes_held
from sharding.messages import inner_jaxprs, totals
from tests.gam_jax.traffic_cases import abstract_step, counted
from tests.meshes import assert_leaves_close, layout_of, mean_loss, slow_unless_chosen

MODEL = LanguageModel(
    Block(GAM(slots=16)), width=16, depth=2, vocab=32, context=32, dropout=0.1, init="published"
)
LEVELS, ONE = ((2, 2, 2), 1, 1), (1, 1, 1)
PARTS, STEPS = 2, 3
CONFIG = OptimizerConfig(warmup=1, eps=1e-4)
CASES = tuple((one,) for one in legal((2, 2, 2)))
ALWAYS = ((Degrees(2, 4, 8),), (Degrees(8, 8, 8, 2),))
"""Three levels, and a second copy: each kind of message over each level that it may go over."""
FEW = ((Degrees(1, 4, 4),), (Degrees(4, 4, 8, 1),), (Degrees(2, 2, 2),))
"""Traced besides, and not compiled."""
BESIDE = (
    (((2, 2), 2, 1), Degrees(2, 4, 4)),
    (((2, 2), 1, 2), Degrees(4, 4, 4, 2)),
    (((2, 2), 1, 2), Degrees(1, 2, 4)),
    (((1, 4), 2, 1), Degrees(4, 4, 4)),
    (((2, 2), 1, 1, 1, 1, 2), Degrees(2, 4, 4)),
    (((2, 2), 1, 1, 1, 1, 2), Degrees(4, 4, 4, 2)),
)
"""Beside tokens, channels and stages that are split."""


def words(degrees):
    second = f",secondary:{degrees.secondary}" if degrees.secondary else ""
    return f"weights:{degrees.weights},gradients:{degrees.gradients},state:{degrees.state}{second}"


def layout(degrees, shape=LEVELS, preset="data+sequence+tensor"):
    return layout_of(shape, preset, shards=words(degrees))


def batches():
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        tokens = random.integers(0, MODEL.vocab, (PARTS, 8, 33)).astype(np.int32)
        weights = np.ones((PARTS, 8, 32), np.float32)
        yield {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "weights": weights}


@functools.cache
def run(degrees, shape=LEVELS):
    """Losses and norms, parameters, and an evaluation, after steps of AdamW in two parts each."""
    placed = layout(degrees, shape) if degrees else layout_of(shape)
    optimizer = make_optimizer(CONFIG, 10, MODEL.table())
    state = init_state(MODEL, optimizer, placed, seed=0)
    step = make_train_step(MODEL, optimizer, placed, PARTS)
    found = []
    for batch in batches():
        state, metrics = step(state, batch)
        found.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    whole = {name: x[0] for name, x in batch.items()}
    found.append((mean_loss(make_eval_step(MODEL, placed)(state.params, whole)), 0))
    return found, jax.tree.map(np.asarray, state.params)


def assert_same_run(degrees, shape=LEVELS):
    (losses, params), (other_losses, other_params) = run(None, ONE), run(degrees, shape)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    assert_leaves_close(other_params, params)


@pytest.mark.parametrize("degrees", slow_unless_chosen(CASES, ALWAYS[:1]))
def test_losses_and_parameters_are_those_of_one_device(degrees):
    assert_same_run(degrees)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "degrees"), BESIDE, ids=str)
def test_so_they_are_beside_other_axes(shape, degrees):
    assert_same_run(degrees, shape)


@pytest.mark.parametrize("degrees", slow_unless_chosen(CASES, (*ALWAYS, *FEW)))
def test_what_is_sent_over_each_level_is_the_formula(degrees):
    assert_formula(degrees)


@pytest.mark.parametrize(("shape", "degrees"), slow_unless_chosen(BESIDE, BESIDE[1:2]))
def test_so_it_is_beside_other_axes(shape, degrees):
    assert_formula(degrees, shape)


def assert_formula(degrees, shape=LEVELS):
    placed = layout(degrees, shape)
    by_formula = step_traffic(MODEL, placed, 16, 32, PARTS)
    assert counted(MODEL, placed, 16, 32, PARTS) == totals(by_formula)


def bytes_held_by(degrees, model):
    """Of parameters and optimizer's state."""
    placed = layout(degrees)
    optimizer = make_optimizer(CONFIG, 10, model.table())
    state, lies = abstract_state(model, optimizer), state_shardings(model, optimizer, placed)
    return bytes_held(state.params, lies.params), bytes_held(state.opt_state, lies.opt_state)


@pytest.mark.parametrize("degrees", slow_unless_chosen(CASES, (*ALWAYS, *FEW)))
def test_bytes_held_are_those_of_the_formula(degrees):
    model = dataclasses.replace(MODEL, param_dtype="bfloat16")
    by_formula, params = state_bytes(model, CONFIG, layout(degrees)), count_params(MODEL.table())
    assert bytes_held_by(degrees, model) == (by_formula.parameters, by_formula.optimizer)
    passing = step_bytes(model, layout(degrees))
    total = by_formula.total + passing.gradients / 2 + passing.secondary  # there 2 bytes, here 4
    precise = 2 * 2 * 16  # the last norm, which stays float32
    assert total == pytest.approx(held(params, degrees), abs=6 * precise + 8)


def scans(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            yield eqn
        for part in inner_jaxprs(eqn):
            yield from scans(part)


@pytest.mark.parametrize("degrees", [Degrees(1, 1, 8), Degrees(2, 4, 8), Degrees(1, 8, 8)], ids=str)
def test_parts_of_a_batch_are_summed_into_parts_of_the_gradients(degrees):
    step, *args = abstract_step(MODEL, layout(degrees), 16, 32, PARTS)
    over_parts = next(scans(jax.make_jaxpr(step)(*args).jaxpr))
    first = over_parts.params["num_consts"]
    carry = over_parts.invars[first : first + over_parts.params["num_carry"]]
    size = sum(x.aval.size * x.aval.dtype.itemsize for x in carry)
    assert 0 < size - step_bytes(MODEL, layout(degrees)).gradients <= 32  # losses and counts
