"""A frozen model and a network at its side: nothing frozen moves, nothing later is seen."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.config import from_dict, to_dict
from gam_jax.data.text import Text
from gam_jax.decode import prefill
from gam_jax.layers import GAM, MLP, Attention, Block
from gam_jax.models import LanguageModel, Model, SideTuned
from gam_jax.models.side_tuned import SIDE, side, side_table
from gam_jax.optimizer import OptimizerConfig
from gam_jax.params import count_params
from gam_jax.training.experiment import Experiment, TrainConfig, run_optimizer
from gam_jax.training.state import begun_from, init_state
from gam_jax.training.step import make_eval_step, make_train_step
from sharding.errors import UserError
from tests.examples import random_like
from tests.meshes import ONE, assert_leaves_close, layout_of, mean_loss

INNER = LanguageModel(Block(GAM(slots=8)), width=8, depth=2, vocab=16)
MODEL = SideTuned(INNER)
OPTIMIZER = OptimizerConfig(warmup=0, only="side/*", eps=1e-4)
EXPERIMENT = Experiment(MODEL, Text(window=8), TrainConfig(steps=10, batch=8), OPTIMIZER)


def batch(seed=0):
    ids = np.random.default_rng(seed).integers(0, 16, (8, 9)).astype(np.int32)
    weights = np.ones((8, 8), np.float32)
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:], "weights": weights}


def frozen(params):
    return {name: x for name, x in jax.tree.map(np.asarray, params).items() if name != SIDE}


@functools.cache
def run(shape, preset):
    layout = layout_of(shape, preset)
    optimizer = run_optimizer(EXPERIMENT)
    state = begun_from(init_state(MODEL, optimizer, layout, 0), random_like(MODEL.table()))
    before = jax.tree.map(np.asarray, state.params)
    step = make_train_step(MODEL, optimizer, layout)
    for seed in range(2):
        state, metrics = step(state, batch(seed))
    after = jax.tree.map(np.asarray, (state.params, state.opt_state))
    return before, *after, float(metrics["loss"])


def test_the_frozen_model_has_no_gradient_and_stays_bit_for_bit():
    before, after, opt_state, _ = run(*ONE)
    jax.tree.map(np.testing.assert_array_equal, frozen(before), frozen(after))
    moved = jax.tree.map(lambda a, b: np.any(a != b), before[SIDE], after[SIDE])
    assert any(jax.tree.leaves(moved))
    held = sum(np.size(x) for x in jax.tree.leaves(opt_state))
    assert held < 2 * count_params(MODEL.table()[SIDE]) + 10
    slopes = jax.jit(jax.grad(lambda p: MODEL.objective(p, batch())[0]))(before)
    assert not any(np.any(x) for x in jax.tree.leaves(frozen(slopes)))
    assert any(np.any(x) for x in jax.tree.leaves(slopes[SIDE]))


def test_no_token_has_to_do_with_later_ones():
    params, rows = random_like(MODEL.table()), batch()
    losses = jax.jit(MODEL.losses)
    found = np.asarray(losses(params, rows))
    other = {**rows, "inputs": rows["inputs"].copy()}
    other["inputs"][:, 5:] = (other["inputs"][:, 5:] + 3) % 16
    after = np.asarray(losses(params, other))
    np.testing.assert_array_equal(after[:, :5], found[:, :5])
    assert np.any(after[:, 5:] != found[:, 5:])


@pytest.mark.slow
def test_it_begins_as_the_inner_model():
    layout, params = layout_of(*ONE), MODEL.init_params(jax.random.key(0))
    own = mean_loss(make_eval_step(MODEL, layout)(params, batch()))
    plain = mean_loss(make_eval_step(INNER, layout)(frozen(params), batch()))
    assert own == pytest.approx(plain, rel=1e-6)


def test_the_side_is_its_equations_in_float64():
    table = side_table(6, 3, 4, 5)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), random_like(table))
    taps = np.random.default_rng(1).normal(size=(3, 2, 4, 6))

    def norm(x, own):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * own["scale"] + own["bias"]

    z = []
    for i, h in enumerate(taps):
        own = {name: x[i] for name, x in params["in_norm"].items()}
        z.append(norm(h @ params["w_in"][i] + params["b_in"][i], own))
    mixed, logits = [], []
    for own in z[:-1]:
        a = np.tril(np.maximum(z[-1] @ own.swapaxes(1, 2), 0))
        a /= np.maximum(a.sum(-1, keepdims=True), 1e-6)
        mixed.append(a @ own + own)
        logits.append((z[-1] * own) @ params["w_layers"] + params["b_layers"])
    p = np.exp(logits) / np.exp(logits).sum(0)
    m = sum(w[..., None] * own for w, own in zip(p, mixed, strict=True))
    y = z[-1] + norm(m @ params["w_mix"] + params["b_mix"], params["mix_norm"])
    wanted = np.maximum(y, 0) @ params["w_out"] + params["b_out"]
    narrow = jax.tree.map(jnp.float32, params)
    found = jax.jit(side)(narrow, jnp.float32(taps))
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_it_has_the_published_number_of_parameters():
    """The text side: 13 taps of 768, a factor of 2 of 1,024 (a recount of the released code)."""
    assert count_params(side_table(768, 13, 512, 1024)) == 5_921_281


@pytest.mark.slow
def test_it_is_the_same_run_on_a_mesh():
    _, after, _, loss = run((4, 1, 2), "fully_sharded+tensor")
    _, want, _, want_loss = run(*ONE)
    np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
    assert_leaves_close(after[SIDE], want[SIDE], 1e-4)


LIMITED = LanguageModel(
    Block(Attention(heads=2, context=8), MLP(hidden=8)), 8, 2, vocab=16, logit_scale=0.5, tied=False
)


@pytest.mark.parametrize("inner", [pytest.param(INNER, marks=pytest.mark.slow), LIMITED])
def test_it_writes_what_it_is_trained_on(inner):
    """As a language model: at once, in chunks, and in rows that stand at unlike places."""
    tuned = SideTuned(inner)
    params, rows = random_like(tuned.table()), batch()
    writer = tuned.writing()
    own = tuned.writing_params(params)
    assert jax.tree.map(np.shape, own) == jax.tree.map(np.shape, random_like(writer.table()))
    assert writer.limit == (inner.limit or 2048)
    assert tuned.carry_bytes(3) == writer.carry_bytes(3)
    writer = writer.for_length(8)
    ids = rows["inputs"]
    run = jax.jit(writer)
    logits, last = run(own, ids)
    wanted = np.asarray(jax.jit(tuned.losses)(params, rows))
    chances = jax.nn.log_softmax(np.asarray(logits))
    found = -np.take_along_axis(np.asarray(chances), rows["targets"][..., None], axis=2)[..., 0]
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)
    carry, parts = writer.carry(8), []
    for start, stop in ((0, 3), (3, 4), (4, 8)):
        y, carry = run(own, ids[:, start:stop], carry)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, 1), logits, rtol=2e-4, atol=2e-4)
    assert_leaves_close(carry, last, 1e-4)
    prompts = [ids[0, :3], ids[1, :6]]
    later, _ = prefill(writer, own, prompts, layout=layout_of(*ONE))
    np.testing.assert_allclose(later, [logits[0, 2], logits[1, 5]], rtol=2e-4, atol=2e-4)


def test_its_configuration_and_what_is_refused():
    assert from_dict(Model, to_dict(MODEL)) == MODEL
    plain = Experiment(MODEL, Text(window=8), TrainConfig(steps=10, batch=8))
    with pytest.raises(UserError, match=r"give optimizer.only=side/\*"):
        run_optimizer(plain)
    with pytest.raises(UserError, match="reads whole"):
        MODEL.check_mesh(layout_of((1, 8, 1)))
    with pytest.raises(ValueError, match="does not divide"):
        SideTuned(INNER, 3)
