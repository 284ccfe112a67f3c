"""A layer gives on any mesh what it gives alone: outputs, carry and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from gam_jax.params import carry_specs, rule_specs
from tests.examples import EXAMPLES, inputs, params_of
from tests.meshes import EXPERT_SHAPES, ONE, SHAPES, assert_leaves_close, layout_of


@functools.cache
def layer_run(name, shape, preset):
    """Output, carry, and gradients by parameters and inputs of a layer on a mesh."""
    layer, layout = EXAMPLES[name], layout_of(shape, preset)
    axes, x = layout.axes, inputs(8, 32)
    stream = P(axes.rows or None, axes.tokens or None)
    carry = layer.carry_table(8)

    def program(params, x, weights):
        own = jax.shard_map(
            lambda p, x: layer(p, x, None, axes),
            mesh=layout.mesh,
            in_specs=(rule_specs(layer.table(), layout), stream),
            out_specs=(stream, carry_specs(carry, layout, axes.rows)),
        )
        y, after = own(params, x)
        return jnp.sum(y * weights), (y, after)

    both = jax.jit(jax.value_and_grad(program, argnums=(0, 1), has_aux=True))
    (_, outputs), gradients = both(params_of(layer), x, inputs(8, 32, seed=1))
    return jax.tree.map(np.asarray, (outputs, gradients))


@settings(max_examples=6)
@given(
    name=st.sampled_from(list(EXAMPLES)),
    shape=st.sampled_from(SHAPES + EXPERT_SHAPES),
    preset=st.sampled_from(["data+sequence+tensor", "data+sequence+tensor_tokens"]),
)
@example("GAM kernel 5", (1, 8, 1), "data+sequence+tensor")
@example("MoE", (1, 1, 2, 1, 4), "data+sequence+tensor_tokens")
@example("MoE of all kinds", (1, 2, 2, 1, 2), "data+sequence+tensor")
@example("MoE of all kinds", (2, 2, 1, 1, 2), "data+sequence+tensor")
@example("MoE chosen by experts", (1, 2, 1, 1, 4), "data+sequence+tensor")
@example("Stack", (2, 2, 2), "data+sequence+tensor_tokens")
def test_a_layer_gives_on_any_mesh_what_it_gives_alone(name, shape, preset):
    assert_same(name, shape, preset)


@pytest.mark.parametrize(
    ("name", "shape", "preset"),
    [
        ("ParScale of attention", (2, 2, 1, 2), "data+sequence+tensor"),
        ("ParScale of a stack", (1, 2, 2, 2), "data+sequence+tensor_tokens"),
    ],
)
def test_streams_give_on_an_axis_of_their_own_what_they_give_alone(name, shape, preset):
    assert_same(name, shape, preset)


def assert_same(name, shape, preset):
    outputs, gradients = layer_run(name, *ONE)
    other_outputs, other_gradients = layer_run(name, shape, preset)
    assert_leaves_close(other_outputs, outputs, 2e-5)
    # Streams that are nearly alike have aggregators whose gradients nearly cancel: theirs are of
    # 0.1 where others are of 20, so that rounding is a thousand times as large beside them.
    assert_leaves_close(other_gradients, gradients, 1e-3 if "ParScale" in name else 2e-5)
