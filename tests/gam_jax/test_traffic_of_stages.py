"""Layers in stages: a step sends what the formulas say, and keeps what the table plans."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import pytest

from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.traffic.pipeline import stages_of
from gam_jax.traffic.step import step_traffic
from gam_jax.training.step import make_gradients
from sharding.messages import totals
from tests.gam_jax.traffic_cases import BLOCKS, MODEL, VARIANTS, abstract_step, counted
from tests.meshes import layout_of
from tests.property.test_pipelines import PIPED

DEEP = dataclasses.replace(MODEL, depth=4)
ALONE, SPREAD, EXPERTS = (1, 1, 1, 1, 1, 2), (1, 2, 2, 1, 1, 2), (1, 1, 1, 1, 2, 2)
CASES = {
    "seq and tensor": (DEEP, SPREAD, "zero1+sequence+tensor", "interleaved", 2, 2),
    "experts": (PIPED["experts"], EXPERTS, "fully_sharded+sequence+tensor", "1f1b", 1, 2),
    "alone": (DEEP, ALONE, "data", "1f1b", 1, 2),
    "shards": (DEEP, (2, 1, 2, 1, 1, 2), "fully_sharded+tensor_tokens", "gpipe", 1, 4),
    "four stages": (DEEP, (2, 1, 1, 1, 1, 4), "zero1", "interleaved", 1, 4),
    "packed": (
        dataclasses.replace(DEEP, packed=True),
        SPREAD,
        "data+sequence+tensor",
        "1f1b",
        1,
        2,
    ),
    "streams": (PIPED["streams"], (1, 2, 1, 2, 1, 2), "data+sequence", "gpipe", 1, 2),
    "streams in shards": (
        PIPED["streams"],
        (1, 1, 2, 2, 1, 2),
        "fully_sharded+tensor_tokens",
        "interleaved",
        1,
        2,
    ),
    "packed streams of experts": (
        dataclasses.replace(PIPED["streams of experts"], packed=True),
        (1, 2, 1, 2, 1, 2),
        "zero1+sequence",
        "1f1b",
        1,
        2,
    ),
    "experts, seq and tensor": (
        PIPED["experts"],
        (1, 2, 2, 1, 1, 2),
        "fully_sharded+sequence+tensor",
        "interleaved",
        1,
        2,
    ),
}


UNLIKE = {
    "alone": ("2,1", DEEP, ALONE, "data", "1f1b"),
    "experts in shards": ("1,2", PIPED["experts"], EXPERTS, "fully_sharded", "gpipe"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNLIKE)
def test_stages_of_unlike_size(name):
    stages, model, shape, preset, schedule = UNLIKE[name]
    model = dataclasses.replace(model, depth=3)
    layout = layout_of(shape, preset, schedule=schedule, stages=stages)
    assert counted(model, layout, 8, 32, 2) == totals(step_traffic(model, layout, 8, 32, 2))


FIRST = next(iter(CASES))
"""The one that is always tried."""


def assert_formula(model, shape, preset, schedule, turns, parts):
    layout = layout_of(shape, preset, schedule=schedule, turns=turns)
    rows = 4 * parts
    found = counted(model, layout, rows, 32, parts)
    assert found == totals(step_traffic(model, layout, rows, 32, parts))
    assert found["permute", ("pipe",)].count % (2 * (turns * parts + shape[-1] - 1)) == 0


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == FIRST else pytest.mark.slow) for name in CASES],
)
def test_counts_and_bytes_equal_the_formulas(name):
    assert_formula(*CASES[name])


WAYS = {
    "whole": ("data+sequence+tensor", "1f1b", 1, {}),
    "sharded": ("fully_sharded+sequence+tensor_tokens", "gpipe", 1, {}),
    "run again": ("zero1+sequence+tensor_tokens", "interleaved", 2, {"remat": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"), list(zip(BLOCKS, itertools.cycle(WAYS), strict=False)), ids=str
)
def test_of_every_layer(name, way):
    preset, schedule, turns, changes = WAYS[way]
    model = dataclasses.replace(DEEP, block=BLOCKS[name], **changes)
    assert_formula(model, SPREAD, preset, schedule, turns, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"), list(zip(VARIANTS, itertools.cycle(WAYS), strict=False)), ids=str
)
def test_of_every_variant(name, way):
    preset, schedule, turns, changes = WAYS[way]
    model = dataclasses.replace(DEEP, **{**VARIANTS[name], **changes})
    assert_formula(model, SPREAD, preset, schedule, turns, 2)


SMALL = LanguageModel(Block(GAM(slots=8)), width=8, depth=2, vocab=16)
ROWS, TOKENS = 4, 64


@functools.cache
def temporaries(schedule, parts):
    """Bytes that the compiler sets aside for the gradients of so many parts of equal size."""
    layout = layout_of(ALONE, "data", schedule=schedule)
    _, state, batch = abstract_step(SMALL, layout, ROWS * parts, TOKENS, parts)
    gradients = jax.jit(make_gradients(SMALL, layout, parts))
    program = gradients.lower(state.params, batch, state.key).compile()
    return program.memory_analysis().temp_size_in_bytes


def kept(schedule, parts):
    """Bytes of inputs and gradients that wait, by the plan of the table."""
    layout = layout_of(ALONE, "data", schedule=schedule)
    found = stages_of(SMALL, layout, ROWS, TOKENS, parts)
    return (found.inputs_kept + found.gradients_kept) * found.input_bytes


def test_memory_of_1f1b_does_not_grow_with_the_parts():
    assert temporaries("1f1b", 16) == temporaries("1f1b", 8)


@pytest.mark.slow
def test_memory_of_gpipe_grows_by_an_input_a_part():
    grown = temporaries("gpipe", 16) - temporaries("gpipe", 8)
    assert grown == pytest.approx(8 * ROWS * TOKENS * SMALL.width * 4, rel=0.01)
    more = temporaries("gpipe", 16) - temporaries("1f1b", 16)
    assert more == pytest.approx(kept("gpipe", 16) - kept("1f1b", 16), rel=0.1)
