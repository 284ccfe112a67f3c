"""Logits of mixed layers are trained by themselves, on rows that the weights do not see."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gam_jax.bilevel import Bilevel, of_logits, two_levels, without_logits
from gam_jax.data import Recall
from gam_jax.layers import GAM, MLP, Block, Mixed
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.training.checks import check_batch
from gam_jax.training.experiment import Experiment, TrainConfig
from gam_jax.training.state import init_state
from gam_jax.training.step import HELD, make_gradients, make_train_step
from sharding.errors import UserError
from tests.meshes import ONE, assert_leaves_close, layout_of

MIXER = Mixed((GAM(slots=8, variant="local"), MLP(hidden=8)), "one")
MODEL = LanguageModel(Block(MIXER), width=8, depth=1, vocab=16, dropout=0.1)
CONFIG, STEPS = OptimizerConfig(warmup=0, eps=1e-4), 10
LEVELS = Bilevel(rate=0.1, warmup=1, every=2, weight_decay=0.5, eps=1e-4)


def batch(seed=0):
    """Two parts, of four rows each."""
    tokens = np.random.default_rng(seed).integers(0, 16, (2, 4, 9)).astype(np.int32)
    weights = np.ones((2, 4, 8), np.float32)
    return {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "weights": weights}


@functools.cache
def made(shape, preset):
    """Layout, optimizer and step."""
    layout = layout_of(shape, preset)
    optimizer = two_levels(CONFIG, LEVELS, STEPS, MODEL.table())
    return layout, optimizer, make_train_step(MODEL, optimizer, layout, 2)


@functools.cache
def states(shape, preset):
    """Before a step, and after each of four; the gradients by logits of the second step's rows."""
    layout, optimizer, step = made(shape, preset)
    state = init_state(MODEL, optimizer, layout, 0)
    host = functools.partial(jax.tree.map, np.asarray)
    found, key = [host(state.params)], state.key
    for seed in range(4):
        if seed == 1:
            held = {name: x[1] for name, x in batch(seed).items()}
            own = jax.random.fold_in(jax.random.fold_in(key, 1), HELD)
            slope_of = jax.jit(make_gradients(MODEL, layout))
            slope = of_logits(host(slope_of(state.params, held, own)[1]))
        state, metrics = step(state, batch(seed))
        key = state.key
        found.append(host(state.params))
    return found, slope, float(metrics["grad_norm"])


def test_logits_stay_bit_for_bit_until_they_are_due_and_weights_move_in_every_step():
    found, _, _ = states(*ONE)
    logits = [jax.tree.leaves(of_logits(params))[0] for params in found]
    moved = [not np.array_equal(a, b) for a, b in zip(logits[1:], logits, strict=False)]
    assert moved == [False, True, False, True]
    for before, after in zip(found[1:], found, strict=False):
        same = jax.tree.map(np.array_equal, without_logits(before), without_logits(after))
        assert not all(jax.tree.leaves(same))


def test_a_step_of_the_logits_is_adam_on_the_second_half_of_the_rows():
    found, slope, _ = states(*ONE)
    before, after, g = (
        jax.tree.leaves(tree)[0] for tree in (*map(of_logits, (found[1], found[2])), slope)
    )
    assert np.any(g)
    wanted = before - 0.1 * (g / (np.abs(g) + 1e-4) + 0.5 * before)  # moments of a first step
    np.testing.assert_allclose(after, wanted, rtol=1e-5, atol=1e-6)


def test_logits_that_are_no_numbers_make_the_loss_of_their_step_none():
    """A drawn option has a finite loss whatever the logits are, and nobody would see them."""
    layout, optimizer, step = made(*ONE)
    state, _ = step(init_state(MODEL, optimizer, layout, 0), batch(0))
    levels = state.opt_state
    broken = jax.tree.map(lambda x: x * np.float32(np.nan), levels.logits[0].mu)
    adam = levels.logits[0]._replace(mu=broken)
    state = state.replace(opt_state=levels._replace(logits=(adam, *levels.logits[1:])))
    state, metrics = step(state, batch(1))
    assert np.isnan([metrics["loss"], metrics["grad_norm"]]).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(without_logits(state.params)))


@pytest.mark.slow
def test_weights_take_the_step_that_they_take_alone():
    """In the first step, whose logits stay: that of a run on its first half of rows."""
    found, _, _ = states(*ONE)
    layout = layout_of(*ONE)
    optimizer = make_optimizer(CONFIG, STEPS, MODEL.table())
    state = init_state(MODEL, optimizer, layout, 0)
    held = {name: x[0] for name, x in batch(0).items()}
    params = make_train_step(MODEL, optimizer, layout)(state, held)[0].params
    own, other = (without_logits(jax.tree.map(np.asarray, p)) for p in (found[1], params))
    assert_leaves_close(own, other, 2e-4)  # clipped by a norm that has no logits in it


PRESETS = ("fully_sharded+sequence+tensor_tokens", "zero1+sequence+tensor")


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_it_is_the_same_run_on_any_mesh(preset):
    found, wanted = states((2, 2, 2), preset), states(*ONE)
    assert_leaves_close(found[1], wanted[1], 1e-4)
    assert_leaves_close(found[0][-1], wanted[0][-1], 1e-4)
    np.testing.assert_allclose(found[2], wanted[2], rtol=1e-4)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(UserError, match="choose an even number"):
        TrainConfig(bilevel=LEVELS)
    plain = dataclasses.replace(MODEL, block=Block(GAM(slots=8)))
    with pytest.raises(UserError, match="there is none"):
        two_levels(CONFIG, LEVELS, STEPS, plain.table())
    with pytest.raises(UserError, match="all weights are trained"):
        two_levels(OptimizerConfig(only="*ffn*"), LEVELS, STEPS, MODEL.table())
    with pytest.raises(UserError, match="is all of"):
        two_levels(CONFIG, Bilevel(0.1, warmup=STEPS), STEPS, MODEL.table())
    with pytest.raises(UserError, match=r"train.bilevel.warmup=1.5: give a share"):
        Bilevel(0.1, warmup=1.5)


def test_half_of_the_parts_go_through_interleaved_stages():
    layout = layout_of((1, 1, 1, 1, 1, 4), schedule="interleaved")
    run = Experiment(MODEL, Recall(), TrainConfig(batch=8, accumulate=4, bilevel=LEVELS))
    with pytest.raises(UserError, match=r"accumulate=4: with .* groups of 4, .* a multiple of 8"):
        check_batch(run, layout)
    check_batch(dataclasses.replace(run, train=TrainConfig(batch=8, accumulate=4)), layout)
    train = TrainConfig(batch=8, accumulate=8, bilevel=LEVELS)
    check_batch(dataclasses.replace(run, train=train), layout)
