"""Laws that every layer obeys."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gam_jax.config import from_dict, to_dict
from gam_jax.layers import LAYERS, MLP, Block, Chunked, Layer, NoOp, Stack
from gam_jax.models.language import LanguageModel
from gam_jax.params import (
    Param,
    abstract_params,
    count_params,
    decay_mask,
    in_caches,
    init_params,
    param_specs,
)
from sharding.layout import Layout
from sharding.mesh import make_mesh
from tests.examples import (
    EXAMPLES,
    LENGTHS,
    TOKENS,
    VARIANTS,
    apply,
    inputs,
    law_of,
    params_of,
)


def layers(wanted):
    return law_of({name: layer for name, layer in EXAMPLES.items() if wanted(layer)})


every_layer = layers(lambda layer: True)
streaming_layer = layers(lambda layer: layer.causal)
with_lengths = pytest.mark.parametrize(
    ("layer", "lengths"),
    [
        pytest.param(
            EXAMPLES[name],
            LENGTHS[name],
            id=name,
            marks=[pytest.mark.slow] if name in VARIANTS else [],
        )
        for name in LENGTHS
    ],
)
whole_layer = layers(lambda layer: not layer.causal)


def assert_equal_but_for_rounding(actual, wanted):
    """Sums in another order differ by some units in the last place of an array's largest value."""
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, wanted)
    actual, wanted = (map(np.asarray, jax.tree.leaves(tree)) for tree in (actual, wanted))
    for found, want in zip(actual, wanted, strict=True):
        scale = max(1.0, float(np.abs(want).max(initial=0)))
        atol = 8 * float(jnp.finfo(jnp.float32).eps) * scale
        np.testing.assert_allclose(found, want, rtol=0, atol=atol)


def test_every_registered_layer_has_an_example_whose_laws_are_always_run():
    always = {type(layer).__name__ for name, layer in EXAMPLES.items() if name not in VARIANTS}
    assert always == set(LAYERS)
    assert set(EXAMPLES) >= VARIANTS


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


def in_dtype(layer, dtype):
    """The layer's parameters, and inputs, in a dtype."""
    params = jax.tree.map(lambda p: np.asarray(p).astype(dtype), params_of(layer))
    return params, np.asarray(inputs(2, TOKENS)).astype(dtype)


def assert_keeps_shape_and_dtype(layer, run):
    table = layer.carry_table(2)
    for dtype in (jnp.float32, jnp.bfloat16):
        params, x = in_dtype(layer, dtype)
        y, carry = run(layer, params, x)
        assert (y.shape, y.dtype) == (x.shape, dtype)
        cached = jax.eval_shape(lambda dtype=dtype: in_caches(dtype, table, layer.carry(2)))
        chex.assert_trees_all_equal_shapes_and_dtypes(carry, cached)


@every_layer
def test_output_and_carry_keep_shape_and_dtype(layer):
    """Both are known without compiling anything."""
    assert_keeps_shape_and_dtype(layer, lambda layer, *args: jax.eval_shape(layer, *args))


@pytest.mark.slow
@every_layer
def test_what_is_computed_keeps_shape_and_dtype(layer):
    assert_keeps_shape_and_dtype(layer, apply)


def assert_split_equals_the_whole(layer, lengths):
    """Chunks of these lengths, one after another."""
    params, x = params_of(layer), np.asarray(inputs(2, TOKENS))
    whole, last = apply(layer, params, x)
    carry, parts = layer.carry(2), []
    for part in np.split(x, np.cumsum(lengths)[:-1], axis=1):
        y, carry = apply(layer, params, part, carry)
        parts.append(np.asarray(y))
    assert_equal_but_for_rounding(np.concatenate(parts, axis=1), np.asarray(whole))
    assert_equal_but_for_rounding(carry, last)


@with_lengths
@settings(max_examples=4)
@given(choices=st.lists(st.integers(0, 2), max_size=TOKENS))
@example([2, 1])
@example([1, 2])
def test_a_split_into_chunks_equals_the_whole(layer, lengths, choices):
    """Each layer has chunks of three lengths: each length is a program to compile."""
    chosen = [lengths[choice] for choice in choices]
    while sum(chosen) > TOKENS:
        chosen.pop()
    assert_split_equals_the_whole(layer, chosen + [1] * (TOKENS - sum(chosen)))


def by_rows(layer, function, *carries):
    """`function(*arrays, axis of the rows)` for each array of the carries."""
    return jax.tree.map(
        lambda param, *arrays: function(*map(np.asarray, arrays), param.axes.index("batch")),
        layer.carry_table(1),
        *carries,
        is_leaf=is_param,
    )


def rows_of(layer, carries, rows):
    """The carry whose row i is row `rows[i]` of `carries[i]`."""

    def one(*args):
        *arrays, axis = args
        parts = [np.take(x, [row], axis) for x, row in zip(arrays, rows, strict=True)]
        return np.concatenate(parts, axis)

    return by_rows(layer, one, *carries)


def is_param(leaf):
    return isinstance(leaf, Param)


@streaming_layer
def test_every_array_of_a_carry_has_rows(layer):
    table = jax.tree.leaves(layer.carry_table(2), is_leaf=is_param)
    assert all(param.axes.count("batch") == 1 for param in table)


@with_lengths
def test_rows_with_different_pasts_give_what_each_gives_alone(layer, lengths):
    """Rows meet in one batch, each in the other's place; then one waits while the other goes on.

    All chunks have lengths that the law of chunks compiles.
    """
    one, short, _ = lengths
    params, x = params_of(layer), np.asarray(inputs(2, TOKENS))

    def after(carry, past, tokens):
        return apply(layer, params, x[:, past : past + tokens], carry)

    carries = {0: layer.carry(2)}
    carries[short] = after(carries[0], 0, short)[1]
    carries[short + 1] = after(carries[short], short, one)[1]
    for early, late in ((0, short), (short, short + 1)):
        together = rows_of(layer, [carries[late], carries[early]], (1, 0))
        for tokens in (one, short):
            parts = np.stack([x[1, late : late + tokens], x[0, early : early + tokens]])
            y, carry = apply(layer, params, parts, together)
            alone = [after(carries[past], past, tokens) for past in (late, early)]
            want = np.stack([np.asarray(alone[0][0])[1], np.asarray(alone[1][0])[0]])
            assert_equal_but_for_rounding(np.asarray(y), want)
            both = rows_of(layer, [alone[0][1], alone[1][1]], (1, 0))
            assert_equal_but_for_rounding(carry, both)
            waiting = rows_of(layer, [together, carry], (0, 1))
            again = np.asarray(apply(layer, params, parts, waiting)[0])
            assert_equal_but_for_rounding(again[0], want[0])


@pytest.mark.slow
@streaming_layer
@given(cuts=st.lists(st.integers(1, TOKENS - 1), unique=True, max_size=TOKENS - 1))
def test_any_split_into_chunks_equals_the_whole(layer, cuts):
    assert_split_equals_the_whole(layer, np.diff([0, *sorted(cuts), TOKENS]))


def test_chunks_are_of_every_length_and_each_layer_has_short_and_long_ones():
    streaming = {name for name, layer in EXAMPLES.items() if layer.causal}
    assert LENGTHS.keys() == streaming
    assert {length for lengths in LENGTHS.values() for length in lengths} == set(range(1, TOKENS))
    for one, short, long in LENGTHS.values():
        assert one == 1 < short < TOKENS / 2 <= long


@streaming_layer
def test_token_by_token_equals_the_whole(layer):
    assert_split_equals_the_whole(layer, [1] * TOKENS)


@functools.partial(jax.jit, static_argnames="layer")
def output_and_gradient(layer, params, x, t):
    """y, and the gradient by x of the sum of y at token t: one program for two laws."""

    def at(x):
        y, _ = layer(params, x)
        return y[0, t].sum(), y

    gradient, y = jax.grad(at, has_aux=True)(x)
    return y, gradient


@streaming_layer
def test_no_token_has_to_do_with_later_ones(layer):
    params, x = params_of(layer), np.asarray(inputs(2, TOKENS))
    y = np.asarray(apply(layer, params, x)[0])
    for t in (0, TOKENS // 2):
        other = x.copy()
        other[:, t + 1 :] = inputs(2, TOKENS, seed=t + 1)[:, t + 1 :]
        found = np.asarray(apply(layer, params, other)[0])
        assert_equal_but_for_rounding(found[:, : t + 1], y[:, : t + 1])
        other[:, t] += 1
        found = np.asarray(apply(layer, params, other)[0])
        assert np.any(found[:, t] != y[:, t]) or isinstance(layer, NoOp)


@pytest.mark.slow
@streaming_layer
def test_it_is_causal_by_its_gradient(layer):
    params, x = params_of(layer), np.asarray(inputs(1, TOKENS))
    for t in (0, TOKENS // 2):
        gradient = np.asarray(output_and_gradient(layer, params, x, t)[1])
        assert not np.any(gradient[:, t + 1 :])
        assert np.any(gradient[:, t]) or isinstance(layer, NoOp)


@whole_layer
def test_a_layer_that_does_not_stream_sees_what_is_to_come_and_hands_nothing_on(layer):
    params, x = params_of(layer), inputs(1, TOKENS)
    assert layer.carry_table(1) == ()

    def first(x):
        return np.asarray(apply(layer, params, x)[0])[:, 0]

    others = (inputs(1, TOKENS, seed)[:, 1:] for seed in range(1, 12))
    changed = (np.concatenate([x[:, :1], other], axis=1) for other in others)
    assert any(np.any(first(other) != first(x)) for other in changed)
    for around in (Block(layer, MLP()), Stack(Block(layer), depth=1)):
        assert not around.causal
    with pytest.raises(ValueError, match="cannot predict a next token; give a causal one"):
        LanguageModel(Block(layer), width=8, depth=1)
    with pytest.raises(ValueError, match="must be causal"):
        Chunked(layer)


@every_layer
def test_a_row_has_nothing_to_do_with_the_other(layer):
    params, x = params_of(layer), np.asarray(inputs(2, TOKENS))
    y, carry = apply(layer, params, x)
    swapped, other_carry = apply(layer, params, x[::-1])
    assert_equal_but_for_rounding(np.asarray(swapped)[::-1], np.asarray(y))
    assert_equal_but_for_rounding(rows_of(layer, [other_carry] * 2, (1, 0)), carry)
    other = np.stack([x[0], np.asarray(inputs(1, TOKENS, seed=1))[0]])
    assert_equal_but_for_rounding(np.asarray(apply(layer, params, other)[0])[0], np.asarray(y)[0])


@pytest.mark.slow
@every_layer
def test_sequences_of_a_batch_do_not_meet(layer):
    params, x = params_of(layer), np.asarray(inputs(2, TOKENS))
    alone = [np.asarray(output_and_gradient(layer, params, row[None], 0)[0]) for row in x]
    chex.assert_trees_all_close(apply(layer, params, x)[0], np.concatenate(alone), atol=1e-6)
