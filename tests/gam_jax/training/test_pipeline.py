"""What cannot be split into stages is refused in a line; layers move to stages and back."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gam_jax.data import Recall
from gam_jax.layers import GAM, Block
from gam_jax.layers.base import WHOLE
from gam_jax.models.base import Model, on_stages
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig, make_optimizer
from gam_jax.params import abstract_params
from gam_jax.training.checks import check_batch, check_fits
from gam_jax.training.experiment import Experiment, TrainConfig
from gam_jax.training.order import moves
from gam_jax.training.state import new_state
from gam_jax.training.step import make_eval_step, make_gradients
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.messages import Total, messages_of, totals
from sharding.parallel import Parallel
from tests.arrays import compiled, initial
from tests.meshes import ONE, layout_of

MODEL = LanguageModel(Block(GAM(slots=16)), width=16, depth=4, vocab=32, dropout=0.0)
PIPE = (1, 1, 1, 1, 1, 2)


class Whole(Model):
    """A model that does not say its parts."""

    def batch_axes(self):
        return {"weights": ("batch",)}


@pytest.mark.parametrize(
    ("model", "turns", "says"),
    [
        (dataclasses.replace(MODEL, depth=1), 1, "needs at least 2 layers, and the model has 1"),
        (MODEL, 3, "pipe=2 with parallel.turns=3 needs at least 6 layers"),
        (dataclasses.replace(MODEL, depth=5), 1, "5 layers do not divide into mesh axis pipe=2"),
        (dataclasses.replace(MODEL, depth=6), 2, "6 layers do not divide"),
        (Whole(), 1, "mesh axis pipe=2: Whole does not say its parts"),
    ],
)
def test_a_model_that_cannot_be_split_is_refused(model, turns, says):
    schedule = "1f1b" if turns == 1 else "interleaved"
    layout = layout_of(PIPE, schedule=schedule, turns=turns)
    with pytest.raises(UserError, match=says):
        model.check_mesh(layout)
    with pytest.raises(UserError, match=says):
        make_gradients(model, layout, 2)


def test_a_run_that_does_not_fit_is_refused_before_it_compiles():
    settings = TrainConfig(batch=6, accumulate=3, steps=2)
    run = Experiment(dataclasses.replace(MODEL, depth=3), Recall(), settings)
    with pytest.raises(UserError, match=r"train.accumulate=3: interleaved parts go in groups of 2"):
        check_batch(run, layout_of(PIPE, schedule="interleaved", turns=2))
    with pytest.raises(UserError, match="3 layers do not divide"):
        check_fits(run, layout_of(PIPE))
    with pytest.raises(UserError, match=r"parallel.schedule=none"):
        Parallel(schedule="none")
    with pytest.raises(UserError, match=r"parallel.turns=0"):
        Parallel(turns=0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"stages": "2,1"}, "parallel.stages=2,1 is 3 layers, and the model has 4"),
        ({"stages": "4"}, "parallel.stages=4: 1 numbers, and mesh axis pipe=2"),
        ({"speeds": "1,2,3"}, "parallel.speeds=1,2,3: 3 numbers, and mesh axis pipe=2"),
        ({"stages": "4,0"}, "parallel.stages=4,0: give a number above 0 for each stage"),
        ({"speeds": "fast"}, "parallel.speeds=fast: give a number above 0"),
        ({"stages": "2,2", "speeds": "1,1"}, "both deal out layers: give one"),
        ({"stages": "1,3", "schedule": "interleaved", "turns": 2}, "a layer for each turn"),
        ({"stages": "1,1,2", "schedule": "interleaved", "turns": 2}, "3 numbers, and mesh axis"),
    ],
)
def test_stages_that_cannot_be_are_refused(given, says):
    mesh = layout_of(PIPE).mesh
    with pytest.raises(UserError, match=says):
        MODEL.check_mesh(Layout(mesh, Parallel(**given)))


def test_speeds_deal_out_layers_and_unlike_stages_hold_zeros_in_what_is_empty():
    layout = Layout(layout_of(PIPE).mesh, Parallel(speeds="1,3"))
    assert layout.layers_of_chunks(4) == (1, 3)
    assert layout.layers_of_chunks(2) == ()
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, MODEL.table())
    state = compiled(functools.partial(new_state, MODEL, optimizer), jax.random.key(0))
    to_stages, from_stages = moves(MODEL, optimizer, layout)
    there = to_stages(state)
    own, spread = (one.params["blocks"]["ffn"]["w_in"] for one in (state, there))
    np.testing.assert_array_equal(np.asarray(spread)[[0, 3, 4, 5]], own)
    assert np.all(np.asarray(spread)[1:3] == 0)
    back = from_stages(there).params["blocks"]["ffn"]["w_in"]
    np.testing.assert_array_equal(np.asarray(back), own)


@pytest.mark.parametrize(
    ("given", "depth", "chunks"),
    [
        ({"stages": "3,2"}, 5, (2, 1, 1, 1)),
        ({"stages": "2,4"}, 6, (1, 2, 1, 2)),
        ({"stages": "1,2,3,1"}, 7, (1, 2, 3, 1)),
        ({"stages": "4,4"}, 8, ()),
        ({"speeds": "2,1"}, 6, (2, 1, 2, 1)),
        ({"speeds": "1,1"}, 8, ()),
    ],
)
def test_layers_of_a_stage_are_dealt_to_its_turns(given, depth, chunks):
    layout = Layout(layout_of(PIPE).mesh, Parallel(schedule="interleaved", turns=2, **given))
    model = dataclasses.replace(MODEL, depth=depth)
    model.check_mesh(layout)
    assert layout.layers_of_chunks(depth) == chunks
    placed, own = on_stages(model, layout)
    assert own.axes.layers == chunks
    assert placed.depth == (4 * max(chunks) if chunks else depth)


def test_layers_move_to_stages_of_several_turns_and_back():
    layout = layout_of(PIPE, "zero1", schedule="interleaved", turns=2)
    optimizer = make_optimizer(OptimizerConfig(warmup=1), 10, MODEL.table())

    def begun(key):
        state = new_state(MODEL, optimizer, key)
        return state.replace(opt_state=jax.tree.map(lambda x: x + 1, state.opt_state))

    state = compiled(begun, jax.random.key(0))
    to_stages, from_stages = moves(MODEL, optimizer, layout)
    there = to_stages(state)
    weights = state.params["blocks"]["ffn"]["w_in"], there.params["blocks"]["ffn"]["w_in"]
    np.testing.assert_array_equal(weights[1], np.asarray(weights[0])[[0, 2, 1, 3]])
    back = from_stages(there)
    for own, other in zip(jax.tree.leaves(back), jax.tree.leaves(state), strict=True):
        if not jax.dtypes.issubdtype(own.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(np.asarray(own), np.asarray(other))
    one = moves(MODEL, optimizer, layout_of(*ONE))
    assert all(move(state) is state for move in one)


@pytest.mark.parametrize(
    ("rows", "parts", "turns", "ticks"), [(8, 4, 1, 5), (8, 4, 2, 9), (6, 2, 1, 3), (3, 1, 2, 4)]
)
def test_a_validation_goes_through_stages_in_parts(rows, parts, turns, ticks):
    """As many of the four parts as divide the rows: v m + p - 1 messages, each of a part's rows."""
    schedule = "1f1b" if turns == 1 else "interleaved"
    evaluate = make_eval_step(MODEL, layout_of(PIPE, schedule=schedule, turns=turns), 4)
    batch = {
        name: jax.ShapeDtypeStruct((rows, 8), "float32" if name == "weights" else "int32")
        for name in MODEL.batch_axes()
    }
    found = totals(messages_of(evaluate, abstract_params(MODEL.table()), batch))
    size = rows // parts * 8 * MODEL.width * 4
    assert found["permute", ("pipe",)] == Total(ticks, ticks * size)


class Scored(LanguageModel):
    """A model that scores in a way of its own, of which its parts say nothing."""

    def scored(self, params, batch, axes=WHOLE):
        return {"twice": tuple(2 * x for x in super().scored(params, batch, axes)["loss"])}


def test_a_model_that_scores_in_a_way_of_its_own_is_scored_so():
    model = Scored(**{f.name: getattr(MODEL, f.name) for f in dataclasses.fields(MODEL)})
    ids = np.random.default_rng(0).integers(0, 32, (2, 4, 8)).astype(np.int32)
    batch = {"inputs": ids[0], "targets": ids[1], "weights": np.ones((4, 8), np.float32)}
    params = initial(model)
    one, two = (
        make_eval_step(model, layout_of(shape), 2)(params, batch) for shape in ((1, 1, 1), PIPE)
    )
    assert one.keys() == two.keys() == {"twice"}
    np.testing.assert_allclose(two["twice"], one["twice"], rtol=1e-5)
