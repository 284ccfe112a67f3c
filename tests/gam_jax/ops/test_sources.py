"""Attention over several sources: factors and shares, silence, order, and a device for each."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gam_jax.layers.branches import summed
from gam_jax.layers.sources import SourceAttention
from gam_jax.ops.sources import attend_source, attend_sources, attend_together, shares
from sharding.axes import Axes
from sharding.errors import UserError
from sharding.messages import Message, messages_of
from tests.examples import random_like
from tests.meshes import layout_of

LENGTHS, WIDTHS = (1, 6), (4, 5)
LAYER = SourceAttention(8, WIDTHS, heads=2, head_size=4)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def pairs():
    return [(drawn(2, n, 2, 4, seed=n), drawn(2, n, 2, 3, seed=n + 50)) for n in LENGTHS]


QUERY = drawn(2, 5, 2, 4, seed=99)
FACTORS = (0.3, -1.2)


def plainly(q, k, v):
    """Float64, and log Z."""
    scores = np.einsum("bthk,bshk->bths", *(x.astype(np.float64) for x in (q, k))) / 2
    total = np.exp(scores).sum(-1)
    return np.einsum("bths,bshv->bthv", np.exp(scores) / total[..., None], v), np.log(total)


@pytest.fixture(scope="module")
def found(pairs):
    """All that is asked of the ops, in one program."""

    @jax.jit
    def run(q, pairs):
        alone, sums = zip(*(attend_source(q, pair) for pair in pairs), strict=True)
        own = shares(sums)
        quiet = [(k, jnp.where(n == 1, v, 0.0)) for n, (k, v) in enumerate(pairs)]
        return {
            "alone": alone,
            "shares": own,
            "factors": attend_sources(q, pairs, FACTORS),
            "by shares": attend_sources(q, pairs, own),
            "together": attend_together(q, pairs),
            "one of all": attend_together(q, quiet),
        }

    return jax.tree.map(np.asarray, run(QUERY, pairs))


def test_factors_weigh_what_each_source_gives_alone(pairs, found):
    wanted = sum(f * plainly(QUERY, *pair)[0] for f, pair in zip(FACTORS, pairs, strict=True))
    np.testing.assert_allclose(found["factors"], wanted, atol=2e-6)


def test_shares_as_factors_are_one_softmax_over_all_and_back(pairs, found):
    """Both ways: shares make one softmax of many; and one softmax by its shares is many."""
    wanted = plainly(QUERY, *(np.concatenate(parts, 1) for parts in zip(*pairs, strict=True)))[0]
    np.testing.assert_allclose(found["shares"].sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(found["by shares"], wanted, atol=2e-6)
    np.testing.assert_allclose(found["together"], wanted, atol=2e-6)
    back = found["one of all"] / found["shares"][1][..., None]
    np.testing.assert_allclose(back, found["alone"][1], atol=2e-5)


@pytest.fixture(scope="module")
def layer():
    x = drawn(2, 5, 8, seed=1)
    sources = [drawn(2, n, w, seed=n) for n, w in zip(LENGTHS, WIDTHS, strict=True)]
    return random_like(LAYER.table()), x, sources


@functools.partial(jax.jit, static_argnums=0)
def run(layer, params, x, sources):
    return layer(params, x, sources)


def test_a_silent_source_is_not_there_in_parallel_and_is_in_one_softmax(layer):
    params, x, sources = layer
    own = {key: params[key] for key in ("query", "out", "source_0")}
    quiet = {**params, "source_1": {**params["source_1"], "value": 0 * params["source_1"]["value"]}}
    none = {**params, "factors": params["factors"].at[1].set(0.0)}
    one = functools.partial(SourceAttention, heads=2, head_size=4)
    wanted = run(one(8, WIDTHS[:1]), {**own, "factors": params["factors"][:1]}, x, sources[:1])
    for silenced in (quiet, none):
        np.testing.assert_array_equal(run(LAYER, silenced, x, sources), wanted)
    # In one softmax without factors its keys take weight all the same.
    alone = run(one(8, WIDTHS[:1], parallel=False), own, x, sources[:1])
    off = run(one(8, WIDTHS, parallel=False), quiet, x, sources) - alone
    assert np.abs(off).max() > 0.01


def test_silent_sources_begin_silent_and_learn(layer):
    _, x, sources = layer
    silent = SourceAttention(8, WIDTHS, heads=2, head_size=4, silent=(1,))
    value = silent.table()["source_1"]["value"]
    start = value.init(jax.random.key(0), value.shape)
    assert not np.any(start)
    params = {**layer[0], "source_1": {**layer[0]["source_1"], "value": start}}
    grad = jax.jit(jax.grad(lambda p: jnp.sum(silent(p, x, sources) ** 2)))(params)
    assert np.any(grad["source_1"]["value"])
    with pytest.raises(UserError, match="sources 0 to 1"):
        SourceAttention(8, WIDTHS, silent=(4,))


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_as_many_sources_are_given_as_declared(layer, parallel, count):
    params, x, sources = layer
    given = (*sources, sources[-1])[:count]
    with pytest.raises(UserError, match=f"has 2 sources, and is given {count}"):
        SourceAttention(8, WIDTHS, heads=2, head_size=4, parallel=parallel)(params, x, given)


def test_the_order_of_a_source_s_tokens_plays_no_part(layer):
    params, x, sources = layer
    turned = [source[:, ::-1] for source in sources]
    found, wanted = (run(LAYER, params, x, own) for own in (turned, sources))
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_a_device_for_each_source_gives_the_same_and_sends_one_sum(layer):
    params, x, sources = layer
    mesh = layout_of((1, 1, 1, 2)).mesh
    axes = Axes(splits=(("stream", "stream"),))

    def own(params, x, sources):
        return LAYER(params, x, sources, axes)

    whole = PartitionSpec()
    program = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=whole, out_specs=whole))
    one = run(LAYER, params, x, sources)
    np.testing.assert_allclose(program(params, x, sources), one, atol=2e-6, rtol=2e-6)
    wanted = Message("all_reduce", ("stream",), 2, 4 * 2 * 5 * 2 * 4)
    assert messages_of(program, params, x, sources) == [wanted]


def test_branches_that_are_not_alike_are_not_added():
    with pytest.raises(UserError, match="must be alike"):
        summed((lambda x: x, lambda x: x[:1]), np.zeros(3, np.float32))
