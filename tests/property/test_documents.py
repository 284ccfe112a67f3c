"""The law of documents: packed into one row, each gives what it gives alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gam_jax.layers import LAYERS
from gam_jax.layers.base import Layer
from gam_jax.ops import documents
from gam_jax.params import Params
from tests.arrays import put
from tests.examples import EXAMPLES, TOKENS, apply, inputs, law_of, params_of
from tests.meshes import layout_of
from tests.property.test_layers import assert_equal_but_for_rounding, rows_of

ROWS, HALF = 2, TOKENS // 2
APART = {name: layer for name, layer in EXAMPLES.items() if layer.causal and layer.documents}
keeping_layer = law_of(APART)
packings = st.lists(st.booleans(), min_size=ROWS * TOKENS, max_size=ROWS * TOKENS)
"""Where documents begin, in all rows."""


@functools.partial(jax.jit, static_argnames="layer")
def packed(layer: Layer, params: Params, x, starts, carry=None):
    """The layer, told where documents begin."""
    return layer(params, x, carry, starts=starts)


def alone(layer, x, starts):
    """Outputs, token by token, where each document begins with a carry of its own; the last carry.

    Token by token a layer gives what it gives of the whole document, by the law of chunks.
    """
    params, fresh = params_of(layer), layer.carry(ROWS)
    carry, outputs = fresh, []
    for t in range(x.shape[1]):
        kept = [fresh if begins else carry for begins in starts[:, t]]
        carry = rows_of(layer, kept, range(ROWS))
        y, carry = apply(layer, params, x[:, t : t + 1], carry)
        outputs.append(np.asarray(y))
    return np.concatenate(outputs, axis=1), carry


def asked():
    return np.asarray(inputs(ROWS, TOKENS, seed=3)), np.asarray(inputs(ROWS, 1, seed=4))


@keeping_layer
@settings(max_examples=3)
@given(begins=packings)
@example([t in (2, 3, 9, 13) for t in range(ROWS * TOKENS)])
@example([t == TOKENS for t in range(ROWS * TOKENS)])
def test_packed_documents_give_what_each_gives_alone(layer, begins):
    """In one piece, and in two that hand a carry on; what comes after belongs to the last one."""
    starts = np.reshape(begins, (ROWS, TOKENS))
    params, (x, after) = params_of(layer), asked()
    want, last = alone(layer, x, starts)
    then = np.asarray(apply(layer, params, after, last)[0])

    whole, carry = packed(layer, params, x, starts)
    assert_equal_but_for_rounding(np.asarray(whole), want)
    assert_equal_but_for_rounding(np.asarray(apply(layer, params, after, carry)[0]), then)

    carry, parts = layer.carry(ROWS), []
    for part in (slice(HALF), slice(HALF, None)):
        y, carry = packed(layer, params, x[:, part], starts[:, part], carry)
        parts.append(np.asarray(y))
    assert_equal_but_for_rounding(np.concatenate(parts, axis=1), want)
    assert_equal_but_for_rounding(np.asarray(apply(layer, params, after, carry)[0]), then)


@keeping_layer
def test_a_document_leaks_into_no_other_by_one_bit(layer):
    x, _ = asked()
    starts = np.arange(TOKENS) == HALF
    starts = np.broadcast_to(starts, (ROWS, TOKENS))
    other = x.copy()
    other[:, :HALF] = 100 * np.asarray(inputs(ROWS, HALF, seed=5))
    found, want = (packed(layer, params_of(layer), each, starts)[0] for each in (other, x))
    np.testing.assert_array_equal(np.asarray(found)[:, HALF:], np.asarray(want)[:, HALF:])


@pytest.mark.slow
@keeping_layer
def test_gradients_are_those_of_documents_alone(layer):
    x, _ = asked()
    params = params_of(layer)
    draw = np.random.default_rng(0)
    weights = draw.normal(size=x.shape).astype(np.float32)
    lengths = (3, 4, 1)
    begins = np.cumsum((0, *lengths[:-1]))
    starts = np.broadcast_to(np.isin(np.arange(TOKENS), begins), (ROWS, TOKENS))

    @jax.jit
    def together(params, x):
        return jnp.sum(weights * layer(params, x, None, starts=starts)[0])

    @jax.jit
    def apart(params, x):
        total = 0.0
        for first, length in zip(begins, lengths, strict=True):
            own = slice(first, first + length)
            total += jnp.sum(weights[:, own] * layer(params, x[:, own], None)[0])
        return total

    found, want = (jax.grad(f, argnums=(0, 1))(params, x) for f in (together, apart))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * max(1.0, np.abs(b).max()))


def test_layers_that_refuse_are_known():
    refusing = {
        type(layer).__name__
        for layer in EXAMPLES.values()
        if "documents" in vars(type(layer)) and not layer.documents
    }
    assert refusing <= REFUSING, refusing - REFUSING
    assert set(LAYERS) >= REFUSING


REFUSING = {"Bidirectional", "MHS", "MoE"}
"""The kinds of layers some of which cannot keep documents apart."""


segments, places_of = jax.jit(documents.segments), jax.jit(documents.places)


@given(begins=packings, before=st.lists(st.integers(0, 9), min_size=ROWS, max_size=ROWS))
def test_segments_and_places_are_counted(begins, before):
    starts = np.reshape(begins, (ROWS, TOKENS))
    want_segments, want_places = np.zeros_like(starts, int), np.zeros_like(starts, int)
    ends = []
    for row in range(ROWS):
        segment, place = 0, before[row]
        for t in range(TOKENS):
            if starts[row, t]:
                segment, place = segment + 1, 0
            want_segments[row, t], want_places[row, t] = segment, place
            place += 1
        ends.append(place)
    np.testing.assert_array_equal(segments(starts), want_segments)
    places, after = places_of(starts, np.asarray(before))
    np.testing.assert_array_equal(places, want_places)
    np.testing.assert_array_equal(after, ends)


def test_segments_and_places_over_split_tokens_are_those_of_the_whole():
    starts = np.random.default_rng(0).random((ROWS, TOKENS)) < 0.3
    before = put([4, 0])
    layout = layout_of((1, 4, 1))
    rows = jax.sharding.PartitionSpec(None, "seq")
    whole = jax.sharding.PartitionSpec()
    own = jax.jit(
        jax.shard_map(
            lambda starts: (
                documents.segments(starts, "seq"),
                *documents.places(starts, before, "seq"),
            ),
            mesh=layout.mesh,
            in_specs=rows,
            out_specs=(rows, rows, whole),
        )
    )
    found = own(put(starts))
    want = segments(starts), *places_of(starts, before)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_array_equal(a, b)
