"""A space is all combinations, each once, and says what it is not made of."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.data.text import Text
from gam_jax.layers import GAM, MLP, Block, Pattern
from gam_jax.models.language import LanguageModel
from gam_jax.search import Choice, Space
from gam_jax.training.experiment import Experiment, TrainConfig
from sharding.errors import UserError

BASE = Experiment(
    LanguageModel(Block(GAM(slots=8), MLP()), width=16, depth=2, vocab=256),
    Text(window=32),
    TrainConfig(batch=8),
)
spaces = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(
    lambda sizes: Space.of({f"c{i}": list(range(n)) for i, n in enumerate(sizes)})
)


@settings(deadline=None, max_examples=30)
@given(spaces, st.integers(0, 2**31))
def test_its_points_are_all_combinations_once(space, seed):
    points = list(space.points())
    assert len(set(points)) == len(points) == space.size == math.prod(space.sizes)
    assert [space.number(point) for point in points] == list(range(space.size))
    drawn = space.sample(np.random.default_rng(seed))
    assert space.point(space.number(drawn)) == drawn
    near = list(space.neighbours(drawn))
    assert len(set(near)) == len(near) == sum(size - 1 for size in space.sizes)
    assert all(sum(a != b for a, b in zip(drawn, one, strict=True)) == 1 for one in near)
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
    assert space.point_of(space.values(drawn)) == drawn


@settings(deadline=None, max_examples=30)
@given(spaces)
def test_the_one_hot_code_tells_points_apart(space):
    points = list(space.points())
    code = space.one_hot(points)
    assert code.shape == (space.size, sum(space.sizes))
    shared = code @ code.T  # in how many choices two points agree
    agree = [[sum(a == b for a, b in zip(p, q, strict=True)) for q in points] for p in points]
    np.testing.assert_array_equal(shared, agree)


def test_a_candidate_is_the_base_with_other_values():
    space = Space.of(
        {"model.width": [16, 32], "model.block.ffn.hidden": [24], "train.batch": [4]}, BASE
    )
    made = space.config((1, 0, 0))
    assert (made.model.width, made.train.batch) == (32, 4)
    assert made.model.block.ffn.hidden == 24
    assert made.model.block.mixer == BASE.model.block.mixer.__class__(
        **{**vars(BASE.model.block.mixer), "width": 32}
    )
    assert made.data == BASE.data


def test_fields_that_another_choice_brings_may_be_chosen():
    gam, memory = {"layer": "GAM", "slots": 8}, {"layer": "LinearMemory"}
    space = Space.of({"model.block.mixer.heads": [1, 2], "model.block.mixer": [gam, memory]}, BASE)
    assert [space.config((index, 1)).model.block.mixer.heads for index in (0, 1)] == [1, 2]
    with pytest.raises(UserError, match="unknown field 'heads'"):
        space.config((0, 0))


def test_equal_candidates_have_one_key():
    same = [{"layer": "GAM", "slots": 8}, {"layer": "GAM", "slots": 8, "kernel": GAM().kernel}]
    space = Space.of({"model.block.mixer": [*same, {"layer": "GAM", "slots": 4}]}, BASE)
    keys = [space.key(point) for point in space.points()]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model.blok.mixer": [1]}, r"unknown field 'blok'; did you mean 'block'\?"),
        ({"model.block.mixer.slot": [1]}, r"mixer.slot: unknown field 'slot'; did you mean"),
        ({"train.batch": [8, "16"]}, "train.batch: expected int, got '16'"),
        ({"train.batch": [8, 16.5]}, "train.batch: expected int, got 16.5"),
        ({"model.block.mixer": [{"layer": "GAN"}]}, "did you mean 'GAM'"),
        ({"model.block.mixer": [{"layer": "GAM", "slots": "x"}]}, "mixer.slots: expected int"),
        ({"train.batch.size": [1]}, "batch holds no fields"),
        ({"train.batch": []}, "at least one value"),
        ({"train.batch": 8}, "needs a list of values, got 8"),
        ({"train.batch": [8, 8]}, "8 is there twice"),
        ({"train.batch": [math.nan]}, "no JSON value"),
        ({}, "at least one choice"),
    ],
)
def test_what_is_no_space_is_one_line(values, message):
    with pytest.raises(UserError, match=message) as error:
        Space.of(values, BASE)
    assert "\n" not in str(error.value)


def test_other_forms_are_refused():
    with pytest.raises(UserError, match="give paths and lists"):
        Space.from_json([1])
    with pytest.raises(UserError, match="chosen twice"):
        Space((Choice("a", (1,)), Choice("a", (2,))))
    space = Space.of({"alpha": [1, 2]})
    with pytest.raises(UserError, match="did you mean 'alpha'"):
        space.point_of({"alpa": 1})
    with pytest.raises(UserError, match="alpha=3 is none of its 2 values"):
        space.point_of({"alpha": 3})
    with pytest.raises(UserError, match="needs a value for 'alpha'"):
        space.point_of({})


def test_paths_go_into_rows_of_layers():
    """A tuple of dataclasses is a list in a configuration; its places have numbers."""
    block = Pattern((Block(GAM(slots=8), MLP()), Block(GAM(slots=2), MLP())), (0, 1, 0))
    model = LanguageModel(block, width=16, depth=1, vocab=256)
    base = Experiment(model, Text(window=32), TrainConfig(batch=8))
    space = Space.of({"model.block.layers.1.mixer.slots": [8, 4]}, base)
    assert [layer.mixer.slots for layer in space.config((1,)).model.block.layers] == [8, 4]
    with pytest.raises(UserError, match="there are 0 to 1 of them, not '2'"):
        Space.of({"model.block.layers.2.mixer.slots": [8]}, base)
