"""A layer gives on any mesh what it gives alone: outputs, carry and gradients."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from gam_jax.layers import LAYERS, Layer
from gam_jax.params import carry_specs, rule_specs
from tests.arrays import on_host
from tests.examples import EXAMPLES, inputs, params_of
from tests.meshes import (
    AXES,
    EXPERT_SHAPES,
    ONE,
    RINGS,
    SHAPES,
    TENSORS,
    assert_leaves_close,
    layout_of,
    pairs,
    slow_unless_chosen,
)


def from_none(layer, axes, params, x):
    return layer(params, x, None, axes)


@functools.cache
def layer_run(name, shape, preset, run=from_none):
    """Output, carry, and gradients by parameters and inputs of a layer on a mesh.

    `run` is the program of one device.
    """
    layer, layout = EXAMPLES[name], layout_of(shape, preset)
    axes, x = layout.axes, inputs(8, 32)
    stream = P(axes.rows or None, axes.tokens or None)
    carry = layer.carry_table(8)

    def program(params, x, weights):
        own = jax.shard_map(
            functools.partial(run, layer, axes),
            mesh=layout.mesh,
            in_specs=(rule_specs(layer.table(), layout), stream),
            out_specs=(stream, carry_specs(carry, layout, axes.rows)),
        )
        y, after = own(params, x)
        return jnp.sum(y * weights), (y, after)

    both = jax.jit(jax.value_and_grad(program, argnums=(0, 1), has_aux=True))
    (_, outputs), gradients = both(on_host(params_of(layer)), x, inputs(8, 32, seed=1))
    return jax.tree.map(np.asarray, (outputs, gradients))


WHOLE, IN_TOKENS = "data+sequence+tensor", "data+sequence+tensor_tokens"
IN_RING, IN_TWO_RINGS = (f"data+sequence+{words}" for words in RINGS)
CHOSEN = (
    ("GAM kernel 5", (1, 8, 1), WHOLE),
    ("MoE", (1, 1, 2, 1, 4), IN_TOKENS),
    ("MoE of all kinds", (1, 2, 2, 1, 2), WHOLE),
    ("MoE of all kinds", (2, 2, 1, 1, 2), WHOLE),
    ("MoE chosen by experts", (1, 2, 1, 1, 4), WHOLE),
    ("Stack", (2, 2, 2), IN_TOKENS),
    ("ParScale of attention", (2, 2, 1, 2), WHOLE),
    ("ParScale of a stack", (1, 2, 2, 2), IN_TOKENS),
    ("FalconH1", (1, 2, 4), IN_TWO_RINGS),
    ("Residual", (1, 4, 2), WHOLE),
    ("Series", (2, 2, 2), WHOLE),
    ("ProductMemory", (2, 1, 4), IN_TOKENS),
    ("MHS", (4, 1, 2), WHOLE),
    ("Elman", (1, 2, 4), WHOLE),
    ("LSTM", (1, 4, 2), IN_TOKENS),
    ("Bidirectional", (2, 4, 1), IN_TOKENS),
    ("TCNCA", (1, 4, 2), WHOLE),
    ("LatentAttention", (2, 2, 2), IN_RING),
    ("MoFME", (1, 2, 2, 1, 2), WHOLE),
    ("FusedDelta", (1, 4, 2), IN_TWO_RINGS),
    ("MinimalRNN lstm", (2, 2, 2), WHOLE),
    ("SoftMixture", (1, 2, 4), IN_TOKENS),
    ("Shallow", (1, 8, 1), WHOLE),
    ("Chunked", (2, 1, 4), WHOLE),
    ("InTurn", (2, 1, 4), WHOLE),
    ("Pattern", (1, 2, 2), IN_TOKENS),
    ("Adapted attention", (2, 2, 2), IN_RING),
    ("Adapted mixtures", (1, 2, 2, 1, 2), WHOLE),
    ("Mixed", (1, 2, 4), IN_TOKENS),
    ("Nested", (2, 1, 4), IN_TOKENS),
    ("Linear", (2, 1, 4), IN_RING),
    ("NoOp", (1, 2, 4), WHOLE),
)
"""Layers, meshes and presets with each kind of layer, itself or in another."""

ALIKE = (
    *("MoE of all kinds", "MoE chosen by experts", "Stack", "Series", "LSTM", "InTurn", "MoFME"),
    *("ParScale of a stack", "Residual", "Adapted mixtures", "Mixed", "NoOp"),
)
"""Of these, what is `slow`: kinds that other cases, tests of models or of their own hold too."""
ALWAYS = [case for case in CHOSEN if case[0] not in ALIKE]

SPLITS = ("data", "sequence", *TENSORS)
"""The words of presets that split what a layer computes; others split the training state."""


def kinds(layer):
    """Names of the layer's class and of those of the layers in it."""
    fields = (getattr(layer, field.name) for field in dataclasses.fields(layer))
    parts = itertools.chain.from_iterable(f if isinstance(f, tuple) else (f,) for f in fields)
    inner = (kinds(part) for part in parts if isinstance(part, Layer))
    return {type(layer).__name__}.union(*inner)


def test_each_kind_of_layer_is_chosen_and_each_axis_is_split_under_each_word():
    assert set().union(*(kinds(EXAMPLES[name]) for name, _, _ in CHOSEN)) == set(LAYERS)
    assert pairs(case[1:] for case in CHOSEN) == set(itertools.product(AXES, SPLITS))


@pytest.mark.parametrize(("name", "shape", "preset"), slow_unless_chosen(CHOSEN, ALWAYS))
def test_a_layer_gives_on_a_mesh_what_it_gives_alone(name, shape, preset):
    assert_same(name, shape, preset)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
@settings(max_examples=2)
@given(
    shape=st.sampled_from(SHAPES + EXPERT_SHAPES),
    preset=st.sampled_from([WHOLE, IN_TOKENS, IN_RING, IN_TWO_RINGS]),
)
def test_every_layer_gives_on_any_mesh_what_it_gives_alone(name, shape, preset):
    assert_same(name, shape, preset)


def assert_same(name, shape, preset, run=from_none):
    outputs, gradients = layer_run(name, *ONE, run)
    other_outputs, other_gradients = layer_run(name, shape, preset, run)
    assert_leaves_close(other_outputs, outputs, 2e-5)
    # Streams that are nearly alike have aggregators whose gradients nearly cancel: theirs are of
    # 0.1 where others are of 20, so that rounding is a thousand times as large beside them.
    assert_leaves_close(other_gradients, gradients, 1e-3 if "ParScale" in name else 2e-5)
