"""Models of other kinds than language: one program for one device, the same run on every mesh."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gam_jax.data import Digits
from gam_jax.layers import GAM, MHS, MLP, Block, MoE
from gam_jax.models import ImageClassifier
from gam_jax.ops.routing import Router
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import abstract_params
from gam_jax.traffic import step_traffic
from gam_jax.training.state import abstract_state, init_state, state_shardings
from gam_jax.training.step import make_eval_step, make_gradients, make_train_step, put_batch
from sharding.errors import UserError
from sharding.layout import bytes_held
from sharding.messages import messages_of, totals
from tests.meshes import assert_leaves_close, layout_of

CLASSIFIER = ImageClassifier(
    Block(GAM(slots=16, kernel=3)), width=16, depth=2, side=8, classes=10, patch=2
)
MODELS = {
    "gam": CLASSIFIER,
    "whole image": dataclasses.replace(
        CLASSIFIER, block=Block(MHS(rows=4, patterns="CX", head=4, state=2))
    ),
    "experts": dataclasses.replace(
        CLASSIFIER,
        block=Block(GAM(slots=16), MoE(ffn=MLP(expansion=1), router=Router(balance=1.0))),
    ),
}
MESHES = [
    ("gam", (4, 1, 1), "data"),
    pytest.param("gam", (4, 1, 1), "fully_sharded", marks=pytest.mark.slow),
    ("gam", (2, 1, 2), "fully_sharded+tensor_tokens"),
    pytest.param("whole image", (2, 1, 1), "zero1", marks=pytest.mark.slow),
    ("experts", (2, 1, 1, 1, 2), "fully_sharded"),
]
ROWS = 8


def batch():
    draw = np.random.default_rng(0)
    return {
        "images": draw.uniform(size=(ROWS, 8, 8)).astype(np.float32),
        "labels": draw.integers(0, 10, ROWS).astype(np.int32),
        "weights": draw.uniform(size=ROWS).astype(np.float32),
    }


@functools.cache
def found(name, shape, preset):
    """Measures, gradients and evaluation of one batch."""
    model, layout = MODELS[name], layout_of(shape, preset)
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, model.table())
    params = init_state(model, optimizer, layout, seed=0).params
    placed = put_batch(model, layout, batch())
    measures, gradients = jax.jit(make_gradients(model, layout))(params, placed, jax.random.key(0))
    evaluation = make_eval_step(model, layout)(params, placed)
    return jax.tree.map(np.asarray, (measures, gradients, evaluation))


@pytest.mark.parametrize(("name", "shape", "preset"), MESHES)
def test_measures_gradients_and_scores_equal_those_of_one_device(name, shape, preset):
    measures, gradients, evaluation = found(name, (1, 1, 1), "data")
    other_measures, other_gradients, other_evaluation = found(name, shape, preset)
    assert_leaves_close(other_measures, measures)
    # Of MHS a batch in two parts on one device differs by 8e-5 already, by its exponentials.
    assert_leaves_close(other_gradients, gradients, 5e-4 if name == "whole image" else 3e-5)
    assert_leaves_close(other_evaluation, evaluation)


def test_what_experts_of_a_classifier_count_is_told_and_penalised():
    measures, _, _ = found("experts", (1, 1, 1), "data")
    assert measures["penalty"] > 0
    assert any(name.endswith("load") for name in measures)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("shape", "preset"),
    [
        ((8, 1, 1), "fully_sharded"),
        ((4, 1, 2), "data+tensor"),
        ((2, 1, 2), "fully_sharded+tensor_tokens"),
        ((2, 1, 4), "zero1+tensor_tokens"),
    ],
)
def test_messages_equal_the_formulas(shape, preset, accumulate):
    layout = layout_of(shape, preset)
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, CLASSIFIER.table())
    parts = (accumulate,) if accumulate > 1 else ()
    arrays = {
        name: jax.ShapeDtypeStruct((*parts, *x.shape), x.dtype)
        for name, x in Digits().batch(16 // accumulate).items()
    }
    step = make_train_step(CLASSIFIER, optimizer, layout, accumulate)
    counted = totals(messages_of(step, abstract_state(CLASSIFIER, optimizer), arrays))
    assert counted == totals(step_traffic(CLASSIFIER, layout, 16, 0, accumulate))


def test_parameters_in_shards_are_a_part_of_the_whole():
    """All but those too small to be split: biases of the head, and the like."""
    held = []
    for shape, preset in (((1, 1, 1), "data"), ((8, 1, 1), "fully_sharded")):
        layout = layout_of(shape, preset)
        optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, CLASSIFIER.table())
        placed = state_shardings(CLASSIFIER, optimizer, layout).params
        held.append(bytes_held(abstract_params(CLASSIFIER.table()), placed))
    whole, shard = held
    assert whole / 8 <= shard < 1.1 * whole / 8


@pytest.mark.parametrize(
    ("shape", "preset", "words"),
    [
        ((1, 2, 1), "data+sequence", "no array of ImageClassifier's batches has an axis 'token'"),
        ((1, 1, 1, 2), "data", "ImageClassifier has no parallel streams"),
    ],
)
def test_a_mesh_that_would_have_no_work_is_refused(shape, preset, words):
    with pytest.raises(UserError, match=words):
        CLASSIFIER.check_mesh(layout_of(shape, preset))
