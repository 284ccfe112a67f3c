"""Caches in pages: read and written as the cache that they stand for, wherever the pages lie."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.ops import pages
from gam_jax.ops.attention import attend_cache
from gam_jax.ops.cached_attention import attend_spans, causal_rule
from gam_jax.ops.documents import spans_of
from gam_jax.ops.pages import PagedKeys, Pages
from sharding.errors import UserError
from tests.arrays import put

ROWS, GROUPS, SIZE, PAGE, MOST = 4, 2, 4, 4, 5
POOL = 1 + ROWS * MOST


def paged(random, cache):
    """The cache [B, G, S, K] in pages drawn at random, in a pool of other things."""
    table = 1 + random.permutation(POOL - 1).reshape(ROWS, MOST)
    pool = random.normal(size=(POOL, GROUPS, PAGE, SIZE)).astype(np.float32)
    pool[table] = np.moveaxis(cache.reshape(ROWS, GROUPS, MOST, PAGE, SIZE), 2, 1)
    return Pages(put(pool), put(table, jnp.int32))


def unpaged(pages):
    found = np.moveaxis(np.asarray(pages.pool)[np.asarray(pages.table)], 1, 2)
    return found.reshape(ROWS, GROUPS, MOST * PAGE, SIZE)


write = jax.jit(Pages.write, static_argnums=3)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, MOST * PAGE), min_size=ROWS, max_size=ROWS), st.integers(0, 99))
def test_a_row_is_written_in_its_own_pages_and_nowhere_else(places, seed):
    """What reaches beyond them lands in page 0."""
    random = np.random.default_rng(seed)
    cache = random.normal(size=(ROWS, GROUPS, MOST * PAGE, SIZE)).astype(np.float32)
    new = random.normal(size=(ROWS, GROUPS, 3, SIZE)).astype(np.float32)
    pages = paged(random, cache)
    after = write(pages, put(new), put(places, jnp.int32), 2)
    for row, place in enumerate(places):
        count = min(3, MOST * PAGE - place)
        cache[row, :, place : place + count] = new[row, :, :count]
    np.testing.assert_array_equal(unpaged(after), cache)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, MOST * PAGE - 2), min_size=ROWS, max_size=ROWS))
def test_where_pages_lie_and_what_stands_behind_a_row_change_no_bit(places):
    """Not even NaN, which a text that went wrong may have left; and all is what a cache gives."""
    outputs = []
    for seed in (0, 1):
        random, other = np.random.default_rng(7), np.random.default_rng(seed)
        q, k, v = random.normal(size=(3, ROWS, 2, 2 * GROUPS, SIZE)).astype(np.float32)
        k, v = k[:, :, :GROUPS], v[:, :, :GROUPS]
        cache = random.normal(size=(2, ROWS, GROUPS, MOST * PAGE, SIZE)).astype(np.float32)
        behind = np.arange(MOST * PAGE) >= np.asarray(places)[:, None]
        stale = np.where(behind[None, :, None, :, None], np.nan if seed else 0, cache)
        position = put(places, jnp.int32)
        y, _ = attend(q, k, v, tuple(paged(other, x.astype(np.float32)) for x in stale), position)
        outputs.append(np.asarray(y))
        want, _ = attend(q, k, v, tuple(map(put, cache)), position)
        np.testing.assert_allclose(y, want, atol=1e-5)
    np.testing.assert_array_equal(*outputs)


@jax.jit
def attend(q, k, v, held, position):
    room = MOST * PAGE
    return attend_spans(causal_rule(0.5, 0, 0.0), room, q, k, v, held, position, axis=None)


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_row_that_is_read_in_parts_gets_the_same_bits_among_any_others(at_once, monkeypatch):
    """In any place, beside shorter and longer ones; and what it gets where all are read at once."""
    random = np.random.default_rng(0)
    q, k, v = random.normal(size=(3, ROWS, 2, 2 * GROUPS, SIZE)).astype(np.float32)
    k, v = k[:, :, :GROUPS], v[:, :, :GROUPS]
    held = tuple(paged(random, random.normal(size=(ROWS, GROUPS, MOST * PAGE, SIZE))) for _ in "kv")
    places = np.array([3, 17, 0, 9], np.int32)
    whole, _ = attend(q, k, v, held, places)
    row = 4 * GROUPS * MOST * PAGE * SIZE
    monkeypatch.setattr(pages, "NEAR", at_once * row)

    @jax.jit
    def in_parts(*args):
        return attend.__wrapped__(*args)[0]

    found = np.asarray(in_parts(q, k, v, held, places))
    np.testing.assert_allclose(found, whole, atol=1e-6)
    for order in ([2, 3, 0, 1], [1, 0, 3, 2]):
        moved = tuple(dataclasses.replace(x, table=x.table[np.array(order)]) for x in held)
        for others in (places[order], np.where(np.array(order) == 3, 9, [16, 1, 2, 18])):
            others = others.astype(np.int32)
            again = np.asarray(in_parts(q[order], k[order], v[order], moved, others))
            np.testing.assert_array_equal(again[order.index(3)], found[3])


def test_tokens_beyond_the_pages_are_nan_and_those_before_are_not():
    random = np.random.default_rng(0)
    cache = random.normal(size=(ROWS, GROUPS, MOST * PAGE, SIZE)).astype(np.float32)
    held = paged(random, cache), paged(random, cache)
    q = np.ones((ROWS, 2, GROUPS, SIZE), np.float32)
    y, _ = attend(q, q, q, held, put([MOST * PAGE - 1, 0, 3, 7], jnp.int32))
    y = np.asarray(y)
    assert np.isnan(y[0, 1]).all()
    assert np.isfinite(y[0, 0]).all()
    assert np.isfinite(y[1:]).all()


def test_keys_of_one_head_in_two_parts_are_joined():
    random = np.random.default_rng(0)
    table = np.array([[2, 1], [3, 0]], np.int32)
    one, two = (random.normal(size=(4, PAGE, k)).astype(np.float32) for k in (3, 2))
    count = np.array([7, 2], np.int32)
    rule, q = causal_rule(1.0, 0, 0.0), put(random.normal(size=(2, 1, 3, 5)), jnp.float32)

    @jax.jit
    def attended(q, one, two, table, count):
        keys = PagedKeys.of((Pages(one, table), Pages(two, table)), count, jnp.float32)
        values = PagedKeys.of((Pages(one, table),), count, jnp.float32)
        return attend_cache(rule, q, keys, values, count - 1)

    found, _ = attended(q, one, two, table, count)
    flat = np.concatenate([one, two], axis=-1)[table].reshape(2, 1, 2 * PAGE, 5)
    want, _ = jax.jit(attend_cache, static_argnums=0)(rule, q, flat, flat[..., :3], count - 1)
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_streams_are_rows_with_pages_of_their_own():
    table = np.array([[1, 2], [3, 0]], np.int32)
    pool = np.arange(3 * 4 * 5, dtype=np.float32).reshape(3, 4, 5)
    pages = Pages(put(pool), put(np.broadcast_to(table, (3, 2, 2))))
    joined = jax.jit(Pages.join_streams, static_argnums=1)(pages, 0)
    np.testing.assert_array_equal(joined.pool, pool.reshape(12, 5))
    np.testing.assert_array_equal(np.asarray(joined.table)[2:4], table + 4)
    split = jax.jit(Pages.split_streams, static_argnums=(1, 2))(joined, 0, 3)
    jax.tree.map(np.testing.assert_array_equal, split, pages)


def test_documents_in_pages_are_refused():
    random = np.random.default_rng(0)
    cache = random.normal(size=(ROWS, GROUPS, MOST * PAGE, SIZE)).astype(np.float32)
    held, q = (paged(random, cache),) * 2, np.ones((ROWS, 2, GROUPS, SIZE), np.float32)
    position = np.zeros(ROWS, np.int32)

    def attended(starts):
        own = {"axis": None, "spans": spans_of(starts, position, None)}
        return attend_spans(causal_rule(1.0, 0, 0.0), 20, q, q, q, held, position, **own)

    with pytest.raises(UserError, match="leave out starts"):
        jax.eval_shape(attended, np.ones((ROWS, 2), bool))
