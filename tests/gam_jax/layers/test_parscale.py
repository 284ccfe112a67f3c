"""Parallel streams: what makes them differ, how they are mixed, and what they add."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.papers.parscale import published
from gam_jax.layers import GAM, MLP, Attention, Block, LinearMemory, ParScale, RMSNorm, WrittenGAM
from gam_jax.layers.base import WHOLE
from gam_jax.models.language import LanguageModel
from gam_jax.params import abstract_params, count_params, init_params
from tests.arrays import put
from tests.examples import WIDTH, apply, inputs, params_of, random_like

MEMORY = WrittenGAM(LinearMemory(width=WIDTH, heads=2, key_width=4), slots=8, kernel=3)
INNER = {
    "attention": Block(Attention(heads=4, context=16), width=WIDTH),
    "bank": Block(GAM(slots=16, kernel=3), width=WIDTH),
    "memory": Block(MEMORY, width=WIDTH),
}
every_inner = pytest.mark.parametrize("inner", INNER.values(), ids=INNER)


def scaled(inner, streams=3, **fields):
    """A layer of streams, with few prefixes, and its parameters."""
    layer = ParScale(inner, streams, prefix=2, width=WIDTH, **fields)
    return layer, params_of(layer)


def with_starts(layer, params, change):
    """Parameters whose starts are `change(start, axis of streams)`."""
    axes = {name: param.axes.index("stream") for name, param in layer.table()["starts"].items()}
    starts = {name: change(np.asarray(x), axes[name]) for name, x in params["starts"].items()}
    return {**params, "starts": starts}


@every_inner
def test_one_stream_is_the_inner_layer_bit_for_bit(inner):
    one, x = ParScale(inner, 1), inputs(2, 8)
    chex.assert_trees_all_equal(abstract_params(one.table()), abstract_params(inner.table()))
    assert one.carry_table(2) == inner.carry_table(2)
    params = params_of(inner)
    chex.assert_trees_all_equal(apply(one, params, x), apply(inner, params, x))


@every_inner
def test_streams_that_begin_alike_give_one_stream_whatever_the_aggregator(inner):
    layer, params = scaled(inner)
    zero = with_starts(layer, params, lambda x, at: np.zeros_like(x))
    x = inputs(2, 8)
    one = apply(layer.varied, {n: params[n] for n in inner.table()}, x)[0]
    chex.assert_trees_all_close(apply(layer, zero, x)[0], one, atol=1e-5)
    alike = with_starts(layer, params, lambda x, at: np.take(x, [0, 0, 0], axis=at))
    other = {**alike, "aggregator": random_like(layer.table()["aggregator"], seed=9)}
    chex.assert_trees_all_close(apply(layer, alike, x)[0], apply(layer, other, x)[0], atol=1e-5)


@every_inner
def test_starts_make_streams_differ_at_every_token(inner):
    layer, params = scaled(inner)
    x = inputs(1, 8)
    moved = with_starts(layer, params, lambda x, at: np.float32(1.5) * x)
    found, before = (np.asarray(apply(layer, own, x)[0]) for own in (moved, params))
    assert np.all(np.max(np.abs(found - before), axis=-1) > 1e-5)


def test_starts_are_small_at_first_but_for_the_offsets_of_a_bank():
    """Which are as large as the normed queries that they move."""
    table = ParScale(Block(GAM(slots=4, kernel=65), width=64), 4, width=64).table()
    starts = jax.jit(lambda key: init_params(table, key))(jax.random.key(0))["starts"]
    assert np.std(starts["mixer.offset"]) == pytest.approx(1.0, rel=0.2)
    assert np.std(starts["mixer.tail"]) == pytest.approx(0.02, rel=0.1)


@settings(max_examples=4)
@given(order=st.permutations(range(3)))
def test_the_order_of_streams_does_not_matter(order):
    layer, params = scaled(INNER["attention"])
    own, mixed = list(order), jax.tree.map(np.asarray, params["aggregator"])
    other = {
        **with_starts(layer, params, lambda x, at: np.take(x, own, axis=at)),
        "aggregator": {
            **mixed,
            "w_in": mixed["w_in"][own],
            "w_out": mixed["w_out"][:, own],
            "b_out": mixed["b_out"][own],
        },
    }
    x = inputs(2, 8)
    chex.assert_trees_all_close(apply(layer, other, x)[0], apply(layer, params, x)[0], atol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_a_mixture_is_that_of_the_equations_in_float64(smoothing):
    """z is feature-major over streams, as the official code flattens it: index = feature P + p."""
    layer, params = scaled(INNER["bank"], smoothing=smoothing)
    random = np.random.default_rng(0)
    hidden = random.normal(size=(3, 5, WIDTH))
    mixed = {name: np.asarray(x, np.float64) for name, x in params["aggregator"].items()}
    z = hidden.transpose(1, 2, 0).reshape(5, -1)
    w1 = mixed["w_in"].transpose(2, 1, 0).reshape(WIDTH, -1)
    inside = z @ w1.T + mixed["b_in"]
    scores = (inside / (1 + np.exp(-inside))) @ mixed["w_out"] + mixed["b_out"]
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    weights = (1 - smoothing) * weights + smoothing / 3
    expected = np.einsum("np,pnd->nd", weights, hidden)
    run = jax.jit(lambda params, hidden: layer.mixed(params, hidden, WHOLE)[0])
    found = run(params["aggregator"], put(hidden, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@every_inner
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_the_first_of_the_streams_are_a_layer_of_so_many(inner, streams):
    layer, params = scaled(inner)
    fewer, kept = dataclasses.replace(layer, streams=streams), layer.first(params, streams)
    chex.assert_trees_all_equal_shapes(kept, params_of(fewer))
    if streams == 1:
        chex.assert_trees_all_equal(kept, {name: params[name] for name in inner.table()})
    if streams == 3:
        chex.assert_trees_all_equal(kept, params)
    assert apply(fewer, kept, inputs(1, 4))[0].shape == (1, 4, WIDTH)


def test_more_streams_than_there_are_cannot_be_taken():
    layer, params = scaled(INNER["bank"])
    with pytest.raises(ValueError, match="there are 3 streams: 4 cannot"):
        layer.first(params, 4)


@pytest.mark.parametrize("width", published.SIZES)
@pytest.mark.parametrize("streams", [1, 2, 4, 8])
def test_it_has_the_published_number_of_parameters(width, streams):
    """Of the models that the paper's law was fitted to, embeddings not counted."""
    hidden = {896: 4864, 1024: 5504, 1280: 6912, 1536: 8320, 2048: 11_008, 2560: 13_824}[width]
    attention = Attention(heads=published.HEADS, kv_heads=published.KV_HEADS, bias=True)
    block = Block(attention, MLP(hidden=hidden, activation="swiglu", bias=False), RMSNorm())
    model = LanguageModel(
        block, width, published.LAYERS, vocab=8, norm=RMSNorm(), streams=streams, prefix=48
    )
    table = {name: part for name, part in model.table().items() if name != "embedding"}
    base = published.SIZES[width]
    assert count_params(table) == base + published.added_params(width, streams)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ParScale(Block(MLP(), width=8), 2), "nothing to begin with"),
        (lambda: ParScale(Block(GAM(slots=4), width=8), 0), "streams must be at least 1"),
        (
            lambda: ParScale(GAM(slots=4, width=8), 2, smoothing=1.5),
            "smoothing must be from 0 to 1",
        ),
    ],
)
def test_what_cannot_be_scaled_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
