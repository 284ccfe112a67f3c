"""Laws that every layer obeys."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.config import from_dict, to_dict
from gam_jax.layers import LAYERS, MLP, Block, Chunked, Layer, Stack
from gam_jax.models.language import LanguageModel
from gam_jax.params import abstract_params, count_params, decay_mask, init_params, param_specs
from sharding.layout import Layout
from sharding.mesh import make_mesh
from tests.examples import EXAMPLES, apply, inputs, params_of

TOKENS = 8


def layers(wanted):
    chosen = {name: layer for name, layer in EXAMPLES.items() if wanted(layer)}
    return pytest.mark.parametrize("layer", chosen.values(), ids=chosen.keys())


every_layer = layers(lambda layer: True)
streaming_layer = layers(lambda layer: layer.causal)
whole_layer = layers(lambda layer: not layer.causal)


def assert_equal_but_for_rounding(actual, wanted):
    """Sums in another order differ by some units in the last place of an array's largest value."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, wanted)
    for found, want in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        scale = max(1.0, float(jnp.abs(want).max(initial=0)))
        atol = 8 * float(jnp.finfo(jnp.float32).eps) * scale
        np.testing.assert_allclose(found, want, rtol=0, atol=atol)


def test_every_registered_layer_has_an_example():
    assert {type(layer).__name__ for layer in EXAMPLES.values()} == set(LAYERS)


@every_layer
def test_it_is_a_layer_and_hashable(layer):
    assert isinstance(layer, Layer)
    assert hash(layer) == hash(from_dict(type(layer), to_dict(layer)))


@every_layer
def test_its_dict_brings_it_back(layer):
    assert from_dict(Layer, to_dict(layer)) == layer


@every_layer
def test_values_shapes_specs_and_masks_have_the_table_s_structure(layer):
    table = layer.table()
    values = jax.eval_shape(lambda: init_params(table, jax.random.key(0)))
    chex.assert_trees_all_equal_shapes_and_dtypes(values, abstract_params(table))
    for other in (decay_mask(table), param_specs(table, Layout(make_mesh()))):
        chex.assert_trees_all_equal_structs(
            jax.tree.map(lambda _: 0, values),
            jax.tree.map(lambda _: 0, other, is_leaf=lambda leaf: not isinstance(leaf, dict)),
        )
    assert count_params(table) == sum(leaf.size for leaf in jax.tree.leaves(values))


@every_layer
def test_output_and_carry_keep_shape_and_dtype(layer):
    params, x = params_of(layer), inputs(2, TOKENS)
    for dtype in (jnp.float32, jnp.bfloat16):
        cast = jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), params)
        y, carry = apply(layer, cast, x.astype(dtype))
        assert (y.shape, y.dtype) == (x.shape, dtype)
        chex.assert_trees_all_equal_shapes_and_dtypes(carry, layer.carry(2))


@streaming_layer
@given(cuts=st.lists(st.integers(1, TOKENS - 1), unique=True, max_size=TOKENS - 1))
def test_any_split_into_chunks_equals_the_whole(layer, cuts):
    params, x = params_of(layer), inputs(2, TOKENS)
    whole, last = apply(layer, params, x)
    carry, parts = layer.carry(2), []
    for part in jnp.split(x, sorted(cuts), axis=1):
        y, carry = apply(layer, params, part, carry)
        parts.append(y)
    assert_equal_but_for_rounding(jnp.concatenate(parts, axis=1), whole)
    assert_equal_but_for_rounding(carry, last)


@streaming_layer
def test_token_by_token_equals_the_whole(layer):
    params, x = params_of(layer), inputs(2, TOKENS)
    whole, _ = apply(layer, params, x)
    carry = layer.carry(2)
    for t in range(TOKENS):
        y, carry = apply(layer, params, x[:, t : t + 1], carry)
        assert_equal_but_for_rounding(y, whole[:, t : t + 1])


@streaming_layer
def test_it_is_causal_by_its_gradient(layer):
    params, x = params_of(layer), inputs(1, TOKENS)
    pull = jax.jit(jax.grad(lambda x, t: layer(params, x)[0][0, t].sum()))
    for t in (0, TOKENS // 2):
        gradient = pull(x, t)
        assert not jnp.any(gradient[:, t + 1 :])
        assert jnp.any(gradient[:, t])


@whole_layer
def test_a_layer_that_does_not_stream_sees_what_is_to_come_and_hands_nothing_on(layer):
    params, x = params_of(layer), inputs(1, TOKENS)
    assert layer.carry_table(1) == ()
    first = apply(layer, params, x)[0][:, 0]
    others = (x.at[:, 1:].set(inputs(1, TOKENS, seed)[:, 1:]) for seed in range(1, 12))
    assert any(jnp.any(apply(layer, params, other)[0][:, 0] != first) for other in others)
    for around in (Block(layer, MLP()), Stack(Block(layer), depth=1)):
        assert not around.causal
    with pytest.raises(ValueError, match="cannot predict a next token; give a causal one"):
        LanguageModel(Block(layer), width=8, depth=1)
    with pytest.raises(ValueError, match="must be causal"):
        Chunked(layer)


@every_layer
def test_sequences_of_a_batch_do_not_meet(layer):
    params, x = params_of(layer), inputs(3, TOKENS)
    alone = jnp.concatenate([apply(layer, params, row[None])[0] for row in x])
    chex.assert_trees_all_close(apply(layer, params, x)[0], alone, atol=1e-6)
