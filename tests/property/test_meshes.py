"""The program of one device gives the same run on every mesh, dropout and clipping included."""

import dataclasses
import functools
import itertools

import chex
import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gam_jax.layers import GAM, MLP, Attention, Block, Chunked, MoE, RMSNorm, Series, Stack
from gam_jax.models.language import LanguageModel
from gam_jax.ops.routing import Capacity, Router
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.training.state import init_state
from gam_jax.training.step import make_eval_step, make_train_step
from tests.arrays import on_host
from tests.examples import random_like
from tests.meshes import (
    AXES,
    EXPERT_SHAPES,
    ONE,
    RINGS,
    SHAPES,
    STATES,
    TENSORS,
    WORDS,
    assert_leaves_close,
    layout_of,
    mean_loss,
    pairs,
    slow_unless_chosen,
)

MODEL = LanguageModel(
    Block(GAM(slots=16)), width=16, depth=2, vocab=32, context=32, dropout=0.1, init="published"
)
MODELS = {
    "gam": MODEL,
    "remat": dataclasses.replace(MODEL, remat=True),
    "unrolled": dataclasses.replace(MODEL, unroll=2),
    "sum, kernel 5": dataclasses.replace(
        MODEL, block=Block(GAM(slots=16, kernel=5, variant="sum"))
    ),
    "experts": dataclasses.replace(
        MODEL,
        block=Block(
            GAM(slots=16),
            MoE(
                ffn=MLP(expansion=1),
                shared=1,
                router=Router(balance=1.0, z=0.1, bias_step=0.01, jitter=0.1),
                capacity=Capacity(1.0, tokens=8),
            ),
        ),
    ),
    "untied, gated, capped, RMS norms": dataclasses.replace(
        MODEL,
        block=Block(GAM(slots=16), MLP(activation="swiglu", bias=False), norm=RMSNorm()),
        norm=RMSNorm(),
        tied=False,
        logit_cap=3.0,
    ),
    "ladder": dataclasses.replace(MODEL, ladder=2),
    "half a ladder": dataclasses.replace(MODEL, ladder=1, remat=True),
    "stacks in turn": dataclasses.replace(
        MODEL,
        block=Series(Stack(Block(GAM(slots=16)), 2), Stack(Block(GAM(slots=16)), 2, remat=True)),
        depth=1,
    ),
    "streams": dataclasses.replace(
        MODEL,
        block=Block(GAM(slots=16), Attention(heads=8, head_size=2, context=32)),
        depth=1,
        streams=4,
        prefix=3,
    ),
    "streams of experts": dataclasses.replace(
        MODEL,
        block=Block(
            GAM(slots=16), MoE(ffn=MLP(expansion=1), router=Router(balance=1.0, bias_step=0.01))
        ),
        streams=2,
    ),
}
SAME_RUN_AS = {"remat": "gam", "unrolled": "gam"}
"""What is rerun or unrolled is the same function: on one device too."""

CHOSEN = (
    ("gam", (8, 1, 1), "zero1+sequence+tensor"),
    ("remat", (4, 1, 2), "fully_sharded+sequence+tensor"),
    ("unrolled", (2, 2, 2), "data+sequence+tensor_tokens+ring"),
    ("untied, gated, capped, RMS norms", (1, 8, 1), "zero1+sequence+tensor"),
    ("experts", (2, 2, 1, 1, 2), "fully_sharded+sequence+tensor"),
    ("experts", (1, 1, 2, 1, 4), "zero1+sequence+tensor_tokens"),
    ("streams", (1, 2, 2, 2), "zero1+sequence+tensor_tokens"),
    ("streams", (2, 1, 1, 4), "fully_sharded+sequence+tensor"),
    ("streams of experts", (2, 1, 1, 2, 2), "data+sequence+tensor"),
)
"""Models, meshes and presets in which each axis is split under each word."""

ALWAYS = [CHOSEN[i] for i in (1, 2, 3, 4, 6)]
"""Those of them that are always run, a model of each kind; the others are `slow`."""

STEPS = 3


def batches():
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        tokens = random.integers(0, MODEL.vocab, (8, 33)).astype(np.int32)
        weights = np.ones((8, 32), np.float32)
        yield {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


@functools.cache
def run(name, shape, preset, rules=""):
    """Losses, first gradients, last parameters and evaluation after a few steps of AdamW.

    eps keeps Adam from blowing up the rounding of gradients that are almost zero. The first
    gradients are read from the first moment, which begins at 0: (1 - beta1) times the gradient.
    """
    model, layout = MODELS[name], layout_of(shape, preset, rules)
    config = OptimizerConfig(warmup=1, eps=1e-4)
    optimizer = make_optimizer(config, 10, model.table())
    state = init_state(model, optimizer, layout, seed=0)
    step = make_train_step(model, optimizer, layout)
    losses, gradients = [], None
    for batch in batches():
        state, metrics = step(state, batch)
        losses.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        if gradients is None:
            adam = next(
                s for s in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(s)
            )
            gradients = jax.tree.map(np.asarray, adam.mu)
    batch["weights"][5:] = 0
    evaluation = make_eval_step(model, layout)(state.params, batch)
    params = jax.tree.map(np.asarray, state.params)
    return losses, gradients, params, [float(x) for pair in evaluation.values() for x in pair]


def _is_adam(state):
    return hasattr(state, "mu")


def assert_same_run(name, shape, preset, rules=""):
    losses, gradients, params, evaluation = run(SAME_RUN_AS.get(name, name), *ONE, "")
    other_losses, other_gradients, other_params, other_evaluation = run(name, shape, preset, rules)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(other_evaluation, evaluation, rtol=1e-5)
    assert_leaves_close(other_gradients, gradients)
    assert_leaves_close(other_params, params)


def test_each_axis_is_split_under_each_word_of_a_preset():
    assert pairs(case[1:] for case in CHOSEN) == set(itertools.product(AXES, WORDS))


@pytest.mark.parametrize(("name", "shape", "preset"), slow_unless_chosen(CHOSEN, ALWAYS))
def test_losses_gradients_and_parameters_equal_those_of_one_device(name, shape, preset):
    assert_same_run(name, shape, preset)


presets = st.builds(
    "{}+sequence+{}".format, st.sampled_from(STATES), st.sampled_from(TENSORS + RINGS)
)


@pytest.mark.slow
@settings(max_examples=12)
@given(
    name=st.sampled_from([name for name in MODELS if "streams" not in name]),
    shape=st.sampled_from(SHAPES + EXPERT_SHAPES),
    preset=presets,
)
@example("sum, kernel 5", (2, 2, 2), "fully_sharded+sequence+tensor_tokens")
@example("remat", (2, 1, 4), "fully_sharded+sequence+tensor_tokens+two_way")
@example("ladder", (1, 1, 4), "fully_sharded+sequence+tensor_tokens+ring")
@example("half a ladder", (2, 2, 2), "fully_sharded+sequence+tensor")
@example("streams of experts", (1, 2, 4), "zero1+sequence+tensor_tokens+ring")
@example("streams", (1, 2, 2, 2), "data+sequence+tensor_tokens")
@example("streams of experts", (2, 1, 1, 2, 2), "zero1+sequence+tensor")
def test_any_model_gives_on_any_mesh_the_run_of_one_device(name, shape, preset):
    assert_same_run(name, shape, preset)


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_mesh_and_every_kind_of_state_gives_the_run_of_one_device(shape, state):
    for tensor in TENSORS[: 1 + (shape[2] > 1)]:
        assert_same_run("gam", shape, f"{state}+sequence+{tensor}")


RULES = ("vocab=none,ffn=none", "slot=none", "channel=none")
WHERE = (
    ((1, 2, 4), "zero1+sequence+tensor_tokens"),
    ((2, 1, 4), "fully_sharded+sequence+tensor"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "where"),
    slow_unless_chosen(
        itertools.product(RULES, WHERE), tuple(zip(RULES, (*WHERE, WHERE[0]), strict=True))
    ),
)
def test_a_changed_table_of_rules_changes_nothing_that_is_computed(rules, where):
    assert_same_run("gam", *where, rules)


@pytest.mark.parametrize(
    ("shape", "preset"),
    [((1, 1, 1), "data+sequence+tensor"), ((2, 2, 2), "fully_sharded+sequence+tensor")],
)
def test_parts_of_a_batch_give_the_gradients_of_the_whole(shape, preset):
    plain = dataclasses.replace(MODEL, dropout=0.0, block=Block(GAM(slots=16)))
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, plain.table())
    values = []
    for accumulate in (1, 4):
        layout = layout_of(shape, preset)
        state = init_state(plain, optimizer, layout, seed=0)
        step = make_train_step(plain, optimizer, layout, accumulate)
        batch = next(batches())
        if accumulate > 1:
            batch = {name: x.reshape(accumulate, -1, x.shape[1]) for name, x in batch.items()}
        _, metrics = step(state, batch)
        values.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    np.testing.assert_allclose(values[1], values[0], rtol=1e-5)


def test_a_chunked_stack_has_the_loss_of_the_whole_on_any_mesh():
    plain = dataclasses.replace(MODEL, dropout=0.0, block=Block(GAM(slots=16)))
    chunked = dataclasses.replace(plain, block=Chunked(Block(GAM(slots=16)), size=5))
    params, batch = on_host(random_like(plain.table())), next(batches())
    losses = [
        mean_loss(make_eval_step(model, layout_of(shape))(params, batch))
        for model, shape in (
            (plain, (1, 1, 1)),
            (chunked, (1, 1, 1)),
            (chunked, (2, 1, 2)),
            (chunked, (2, 2, 1)),
        )
    ]
    np.testing.assert_allclose(losses[1:], losses[0], rtol=1e-5)


def test_the_seed_decides_the_start():
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, MODEL.table())
    one, same, other = (
        init_state(MODEL, optimizer, layout_of((1, 1, 1)), seed) for seed in (0, 0, 1)
    )
    chex.assert_trees_all_equal(one.params, same.params)
    assert np.any(one.params["embedding"] != other.params["embedding"])
