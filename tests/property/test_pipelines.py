"""Layers over stages: any schedule gives the run of one device that takes as many parts."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gam_jax.models import ImageClassifier
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.training.order import moves
from gam_jax.training.state import init_state
from gam_jax.training.step import make_eval_step, make_train_step
from sharding.pipeline.stages import slots
from tests.meshes import ONE, WORDS, assert_leaves_close, layout_of, pairs
from tests.property.test_meshes import MODEL, MODELS
from tests.property.test_models_on_meshes import MODELS as CLASSIFIERS

STEPS, PARTS = 3, 4
IN_TURN = "stacks in turn"
PIPED: dict = {
    **{name: dataclasses.replace(model, depth=2) for name, model in MODELS.items()},
    "image": CLASSIFIERS["gam"],
    "image, experts": CLASSIFIERS["experts"],
}

CASES = (
    ("gam", (1, 2, 1, 1, 1, 2), "fully_sharded+sequence+tensor", "1f1b", 1),
    ("experts", (1, 1, 1, 1, 2, 2), "data+sequence+tensor", "gpipe", 1),
    ("gam", (2, 1, 2, 1, 1, 2), "zero1+sequence+tensor_tokens", "interleaved", 2),
    ("gam", (1, 1, 2, 1, 1, 4), "data+sequence+tensor", "interleaved", 1),
    ("gam", (2, 1, 2, 1, 1, 2), "fully_sharded+sequence+tensor_tokens", "gpipe", 1),
    ("experts", (1, 1, 1, 1, 2, 2), "fully_sharded+sequence+tensor", "interleaved", 2),
    ("experts", (2, 1, 1, 1, 2, 2), "zero1+sequence+tensor", "1f1b", 1),
    ("remat", (2, 1, 1, 1, 1, 4), "fully_sharded+sequence+tensor", "1f1b", 1),
    ("unrolled", (1, 2, 2, 1, 1, 2), "data+sequence+tensor_tokens", "1f1b", 1),
    ("sum, kernel 5", (1, 4, 1, 1, 1, 2), "zero1+sequence+tensor", "1f1b", 1),
    ("untied, gated, capped, RMS norms", (1, 1, 4, 1, 1, 2), "zero1+tensor", "1f1b", 1),
    (IN_TURN, (2, 1, 2, 1, 1, 2), "fully_sharded+sequence+tensor", "1f1b", 1),
    ("ladder", (1, 1, 2, 1, 1, 2), "data+tensor_tokens", "1f1b", 1),
    ("ladder", (2, 1, 1, 1, 1, 2), "fully_sharded", "interleaved", 2),
    ("half a ladder", (1, 1, 1, 1, 1, 2), "zero1", "gpipe", 1),
    ("streams", (1, 1, 2, 2, 1, 2), "data+tensor_tokens", "interleaved", 1),
    ("streams", (1, 2, 1, 2, 1, 2), "fully_sharded+sequence", "gpipe", 1),
    ("streams of experts", (2, 1, 1, 2, 1, 2), "zero1", "1f1b", 1),
    ("streams of experts", (1, 1, 1, 2, 2, 2), "data", "1f1b", 1),
    ("image", (2, 1, 1, 1, 1, 2), "data", "1f1b", 1),
    ("image, experts", (1, 1, 1, 1, 2, 2), "fully_sharded", "interleaved", 1),
)
"""Model, mesh, preset, schedule, turns; the first is always run."""
ALWAYS = 1


def batches(model):
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        if isinstance(model, ImageClassifier):
            images = random.uniform(size=(PARTS, 4, 8, 8)).astype(np.float32)
            labels = random.integers(0, 10, (PARTS, 4)).astype(np.int32)
            weights = random.uniform(size=(PARTS, 4)).astype(np.float32)
            yield {"images": images, "labels": labels, "weights": weights}
        else:
            tokens = random.integers(0, MODEL.vocab, (PARTS, 4, 33)).astype(np.int32)
            weights = random.uniform(size=(PARTS, 4, 32)).astype(np.float32)
            yield {"inputs": tokens[..., :-1], "targets": tokens[..., 1:], "weights": weights}


@functools.cache
def run(name, depth, shape, preset, schedule="1f1b", turns=1, stages=""):
    """Losses, first gradients, last parameters and evaluation; NaN in all buffers at first."""
    model = PIPED[name]
    model = dataclasses.replace(model, depth=depth or model.depth)
    layout = layout_of(shape, preset, schedule=schedule, turns=turns, stages=stages)
    optimizer = make_optimizer(OptimizerConfig(warmup=1, eps=1e-4), 10, model.table())
    to_stages, from_stages = moves(model, optimizer, layout)
    state = to_stages(init_state(model, optimizer, layout, seed=0))
    empty = _empty_slots(model, layout, state)
    step = make_train_step(model, optimizer, layout, PARTS, fill=float("nan"))
    told, gradients = [], None
    for batch in batches(model):
        state, metrics = step(state, batch)
        told.append(jax.tree.map(np.asarray, metrics))
        if gradients is None:
            gradients = jax.tree.map(np.asarray, gradients_of(from_stages(state)))
    for leaf in jax.tree.leaves((state.params["blocks"], gradients_of(state)["blocks"])):
        assert np.all(np.asarray(leaf)[empty] == 0)  # they never move
    part = {array: x[0] for array, x in batch.items()}
    part["weights"][3:] = 0
    evaluate = make_eval_step(model, layout, PARTS, fill=float("nan"))
    evaluation = evaluate(state.params, part)
    params = jax.tree.map(np.asarray, from_stages(state).params)
    return told, gradients, params, jax.tree.map(np.asarray, evaluation)


def gradients_of(state):
    """The first moment, which after the first step is the gradient but for a factor."""
    return next(s for s in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(s)).mu


def _empty_slots(model, layout, state):
    """Those on stages that no layer takes."""
    every = np.arange(len(jax.tree.leaves(state.params["blocks"])[0]))
    layers = layout.layers_of_chunks(model.depth)
    return np.setdiff1d(every, slots(layers, layout.stages)) if layers else every[:0]


def _is_adam(state):
    return hasattr(state, "mu")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=" ".join(map(str, case)), marks=() if i < ALWAYS else mark)
        for mark in (pytest.mark.slow,)
        for i, case in enumerate(CASES)
    ],
)
def test_losses_gradients_parameters_and_scores_equal_those_of_one_device(case):
    name, shape, preset, schedule, turns = case
    depth = shape[-1] * turns if shape[-1] * turns > 2 else 0
    want = run(name, depth, *ONE)
    found = run(name, depth, shape, preset, schedule, turns)
    for one, other in zip(found, want, strict=True):
        assert_leaves_close(one, other)


UNLIKE = (
    ("gam", (1, 1, 1, 1, 1, 2), "zero1", "1f1b", "2,1"),
    ("experts", (1, 1, 1, 1, 2, 2), "fully_sharded", "gpipe", "1,2"),
    ("image, experts", (2, 1, 1, 1, 1, 2), "data", "1f1b", "1,2"),
    ("remat", (1, 2, 1, 1, 1, 4), "data+sequence", "interleaved", "1,2,1,3"),
    ("ladder", (1, 1, 2, 1, 1, 2), "data+tensor", "1f1b", "1,2"),
    ("gam", (1, 2, 1, 1, 1, 2), "fully_sharded+sequence", "interleaved", "3,2", 2),
    ("streams", (1, 1, 1, 2, 1, 2), "data", "1f1b", "2,1"),
    ("experts", (1, 1, 1, 1, 2, 2), "zero1", "interleaved", "1,2,1,1", 2),
)
"""Model, mesh, preset, schedule, layers of each stage or chunk; turns, where there are several."""


@pytest.mark.slow
@pytest.mark.parametrize("case", UNLIKE, ids=str)
def test_stages_of_unlike_size_give_the_run_of_one_device(case):
    """Places that no layer takes are zeros at the end, parameters and moments."""
    name, shape, preset, schedule, stages, *turns = case
    depth = sum(map(int, stages.split(",")))
    want = run(name, depth, *ONE)
    found = run(name, depth, shape, preset, schedule, *(turns or [1]), stages)
    for one, other in zip(found, want, strict=True):
        assert_leaves_close(one, other)


def test_stages_are_tried_under_each_word_of_a_preset():
    found = pairs((shape, preset) for _, shape, preset, *_ in CASES)
    assert {word for axis, word in found if axis == "pipe"} == set(WORDS)
    assert {case[0] for case in CASES} == set(PIPED)
