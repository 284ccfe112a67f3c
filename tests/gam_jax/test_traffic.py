"""A training step sends what the formulas say: the same collectives, as often, the same bytes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from gam_jax.layers import (
    Attention,
    Block,
    Layer,
    MoE,
    Pattern,
    Series,
    Stack,
)
from gam_jax.ops.cross_entropy import block_size, blocks
from gam_jax.ops.routing import Router
from gam_jax.traffic.layers import layer_traffic
from gam_jax.traffic.step import has_formula, step_traffic
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.messages import totals
from sharding.parallel import Parallel
from tests.gam_jax.traffic_cases import (
    BLOCKS,
    LATENT,
    LINEAR,
    MEMORIES,
    MODEL,
    PLAIN,
    PRESETS,
    VARIANTS,
    assert_formula,
    counted,
    in_turn,
)
from tests.meshes import (
    COVERING,
    STATES,
    TENSORS,
    layout_of,
    slow_unless_chosen,
)

MESHES = ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (4, 1, 2), (1, 2, 4))
EVERY_PRESET = tuple(f"{s}+sequence+{t}" for s, t in itertools.product(STATES, TENSORS))


@pytest.mark.parametrize(
    ("shape", "preset"), slow_unless_chosen(itertools.product(MESHES, EVERY_PRESET), COVERING)
)
def test_on_every_mesh(shape, preset):
    assert_formula(MODEL, shape, preset)


def test_of_more_tokens_than_the_loss_takes_at_once():
    """Blocks without empty places, and a last one with two."""
    model = dataclasses.replace(MODEL, context=250)
    layout = layout_of((1, 1, 8), "data+tensor")
    for rows, tokens in ((8, 250), (7, 211)):
        count, size = blocks(rows * tokens, block_size("cpu"))
        assert count > 2
        found = totals(step_traffic(model, layout, rows, tokens))
        assert counted(model, layout, rows, tokens) == found
        assert size * count - rows * tokens == (0 if rows == 8 else 2)


@pytest.mark.parametrize(
    ("name", "preset"),
    slow_unless_chosen(itertools.product(VARIANTS, PRESETS), [("remat in bfloat16", PRESETS[0])]),
)
def test_of_every_variant(name, preset):
    assert_formula(dataclasses.replace(MODEL, **VARIANTS[name]), (2, 2, 2), preset)


RERUN = {"remat": True}
WAYS = {
    "whole": ("data+sequence+tensor", {}),
    "sharded": ("fully_sharded+sequence+tensor_tokens", {}),
    "run again": ("zero1+sequence+tensor_tokens", RERUN),
    "in rings": ("fully_sharded+sequence+tensor_tokens+two_way", {}),
    "in a ring, run again": ("zero1+sequence+tensor_tokens+ring", RERUN),
    "sharded in bfloat16, run again": (
        "fully_sharded+sequence+tensor",
        {**RERUN, "dtype": "bfloat16"},
    ),
}
LAYERS_AND_WAYS = in_turn(BLOCKS, WAYS)


@pytest.mark.parametrize(
    ("name", "way"), slow_unless_chosen(itertools.product(BLOCKS, WAYS), LAYERS_AND_WAYS[::2])
)
def test_of_every_layer(name, way):
    preset, changes = WAYS[way]
    assert_formula(dataclasses.replace(MODEL, block=BLOCKS[name], **changes), (2, 2, 2), preset)


PACKED_MESHES = ((1, 4, 2), (2, 2, 2))
PACKED_WAYS = ("whole", "sharded", "run again")
PACKED = {
    name: block
    for name, block in (
        BLOCKS | {"window": Block(Attention(heads=4, window=5)), "GAM": MODEL.block}
    ).items()
    if not dataclasses.replace(MODEL, block=block).cannot_pack()
}
CHOSEN_PACKED = tuple(
    (name, *rest)
    for name, *rest in zip(
        (
            "GAM",
            "linear",
            "gated_deltanet",
            "Mamba-2 in groups",
            "TCNCA, whole chunks",
            "Falcon-H1",
            "window",
        ),
        itertools.cycle(PACKED_MESHES),
        itertools.cycle(PACKED_WAYS),
        strict=False,
    )
)


@pytest.mark.parametrize(
    ("name", "shape", "way"),
    slow_unless_chosen(itertools.product(PACKED, PACKED_MESHES, PACKED_WAYS), CHOSEN_PACKED),
)
def test_of_rows_that_hold_documents(name, shape, way):
    """A few numbers a row, and those of the tokens that convolutions and rings look at."""
    preset, changes = WAYS[way]
    model = dataclasses.replace(MODEL, block=PACKED[name], packed=True, **changes)
    assert has_formula(model, layout_of(shape, preset))
    assert_formula(model, shape, preset)


def test_a_layer_without_a_formula_for_documents_is_none_of_those_that_are_predicted():
    @dataclasses.dataclass(frozen=True)
    class Unknown(Layer):
        pass

    model = dataclasses.replace(MODEL, block=Block(Unknown()))
    for packed, shape, known in ((True, (1, 8, 1), False), (True, (8, 1, 1), True)):
        one = dataclasses.replace(model, packed=packed)
        assert has_formula(one, layout_of(shape)) == known


OTHER_MESHES = ((1, 4, 2), (8, 1, 1), (1, 2, 4))
SOME = ("gla", "gated_deltanet", "Mamba-2 in groups", "LSTM")


@pytest.mark.parametrize(
    ("name", "shape"),
    slow_unless_chosen(itertools.product(SOME, OTHER_MESHES), in_turn(SOME, OTHER_MESHES)),
)
def test_of_states_on_other_meshes(name, shape):
    model = dataclasses.replace(MODEL, block=Block(MEMORIES[name]), remat=True)
    assert_formula(model, shape, "fully_sharded+sequence+tensor_tokens")


ONE_OF_EACH = (
    *("gla", "gated_deltanet", "fused delta", "Mamba-2 in groups", "Mamba", "minimal GRU"),
    *("written GAM with a bank", "Elman", "LSTM", "GRU"),
)


def test_each_layer_with_a_state_is_chosen():
    assert {type(MEMORIES[name]) for name in ONE_OF_EACH} == {*map(type, MEMORIES.values())}


def test_each_way_is_chosen_with_layers_of_many_kinds():
    for way in WAYS:
        assert sum(chosen == way for _, chosen in LAYERS_AND_WAYS) >= len(BLOCKS) // len(WAYS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", slow_unless_chosen([(n,) for n in MEMORIES], [(n,) for n in ONE_OF_EACH])
)
def test_what_a_state_sends_over_split_tokens_does_not_grow_with_them(name):
    model = dataclasses.replace(MODEL, block=Block(MEMORIES[name]), context=0)
    layout = Layout(make_mesh(seq=8), Parallel("sequence"))
    assert counted(model, layout, 1, 64) == counted(model, layout, 1, 4096)


def test_latents_grow_with_the_tokens():
    model = dataclasses.replace(MODEL, block=Block(LATENT), context=0)
    layout = Layout(make_mesh(seq=8), Parallel("sequence"))
    short, long = (
        sum(m.sent for m in step_traffic(model, layout, 1, tokens) if m.collective == "all_gather")
        for tokens in (64, 4096)
    )
    assert long == 64 * short


DEEP = Series(
    Stack(Block(LINEAR["gla"]), 2), Stack(Block(LATENT, MoE(router=Router(bias_step=0.1))), 3, True)
)


DEEP_MESHES = ((2, 2, 2), (2, 1, 2, 1, 2), (8, 1, 1))
DEEP_PRESETS = (*PRESETS, "fully_sharded+sequence+tensor")


@pytest.mark.parametrize(
    ("shape", "preset"),
    slow_unless_chosen(
        itertools.product(DEEP_MESHES, DEEP_PRESETS), in_turn(DEEP_MESHES, DEEP_PRESETS)
    ),
)
def test_of_stacks_in_turn(shape, preset):
    """Parameters are gathered as often as those of one stack."""
    assert_formula(dataclasses.replace(MODEL, block=DEEP, depth=1), shape, preset)


SLOW = pytest.mark.slow
PATTERN = Pattern((Block(LINEAR["gla"]), Block(PLAIN)), (0, 0, 1, 0, 0, 1, 0))


@pytest.mark.parametrize(
    ("shape", "preset", "remat"),
    [
        ((2, 2, 2), "fully_sharded+sequence+tensor", False),
        pytest.param((8, 1, 1), "fully_sharded+sequence+tensor_tokens", True, marks=SLOW),
        pytest.param((2, 1, 4), "zero1+sequence+tensor", True, marks=SLOW),
    ],
)
def test_of_a_pattern(shape, preset, remat):
    """Its turns gather block by block."""
    assert_formula(dataclasses.replace(MODEL, block=PATTERN, depth=1, remat=remat), shape, preset)


def test_stacks_in_one_that_is_run_again_have_no_formula():
    model = dataclasses.replace(MODEL, block=DEEP, depth=1, remat=True)
    with pytest.raises(NotImplementedError, match="a stack in one"):
        step_traffic(model, layout_of((8, 1, 1)), 8, 32)


@pytest.mark.parametrize("preset", ["data", "fully_sharded"])
def test_in_parts(preset):
    layout = Layout(make_mesh(2), Parallel(preset))
    assert counted(MODEL, layout, 8, 32, 4) == totals(step_traffic(MODEL, layout, 8, 32, 4))


def test_over_split_tokens_it_does_not_grow_with_the_sequence():
    model = dataclasses.replace(MODEL, context=0)
    layout = Layout(make_mesh(seq=8), Parallel("sequence"))
    assert counted(model, layout, 1, 64) == counted(model, layout, 1, 4096)


def test_a_layer_without_a_formula_is_named():
    class Unknown(Layer):
        pass

    with pytest.raises(NotImplementedError, match="Unknown"):
        layer_traffic(Unknown(), None)
