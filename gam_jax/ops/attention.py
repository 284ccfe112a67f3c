"""Softmax attention in blocks: memory grows with the tokens, not with their square.

Source: FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2: an online softmax over blocks of
keys, and a backward pass that makes each block of weights again from the logarithm of its sum.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gam_jax.ops.pages import PagedKeys
from gam_jax.ops.tiles import (
    EMPTY,
    Place,
    Rule,
    Tiles,
    channels_first,
    rows_by_columns,
    weights_by_columns,
    weights_by_rows,
)
from sharding import collectives, products


def attend_tokens(
    rule: Rule,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G V"],
    offset: Array | int = 0,
    first: Array | int = 0,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """softmax(scores) v over the keys that a query sees.

    As `attend_cache`, of keys and values that have tokens before heads.
    """
    return attend_cache(rule, q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), offset, first)


def attend_cache(
    rule: Rule,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B G S K"] | PagedKeys,
    v: Float[Array, "B G S V"] | PagedKeys,
    offset: Array | int = 0,
    first: Array | int = 0,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """softmax(scores) v over the keys that a query sees, read as a cache keeps them.

    Query head h reads key head h // (H / G) (grouped queries, arXiv 2305.13245).

    Args:
      rule: see `Rule`.
      q: queries.
      k: keys, S of them, in G groups of heads; heads before tokens, so that a block of one head's
        keys lies in one piece. Those in pages are read a block at a time; they have no derivative.
      v: values, likewise.
      offset: place of the first query, the first key standing at 0: of all rows, or of each row,
        [B]. It may be traced.
      first: keys before this one are not there; of all rows or of each, likewise, or of each
        query, [B, T]: where its document begins, if rows hold several (rows in pages do not).

    Returns:
      The mixture and the logarithm of the sum of exp(scores), both float32. A query that sees no
      key has the mixture 0 and the logarithm EMPTY. Blocks that no query sees are not computed.
    """
    batch, tokens, heads, size = q.shape
    groups = k.shape[1]
    grouped = q.reshape(batch, tokens, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    ends = (jnp.asarray(x, jnp.int32) for x in (offset, first))
    if isinstance(k, PagedKeys) and isinstance(v, PagedKeys):
        out, lse = _in_pages(rule, grouped, k, v, *ends)
    else:
        assert not isinstance(k, PagedKeys)
        assert not isinstance(v, PagedKeys)
        pair: tuple[Array, Array] = _attend(rule, *collectives.vary_alike(grouped, k, v, *ends))
        out, lse = pair
    out = out.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, heads, -1)
    return out, lse.transpose(0, 3, 1, 2).reshape(batch, tokens, heads)


def _in_pages(
    rule: Rule, q: Array, k: PagedKeys, v: PagedKeys, offset: Array, first: Array
) -> tuple[Array, Array]:
    """`forward`, of as many rows at once as there is room near the processor.

    Rows of about as many tokens are read together, so that none waits for a far longer one. What a
    row gets does not depend on which others these are.
    """
    size, count = k.rows, len(q)
    if size == count:
        return forward(rule, q, k, v, offset, first)
    order = jnp.argsort(k.count)

    def parted(x: Array) -> Array:
        return x[order].reshape(-1, size, *x.shape[1:])

    def part(rows: Any) -> tuple[Array, Array]:
        q, keys, values, ends = rows
        return forward(rule, q, k.with_rows(keys), v.with_rows(values), *ends)

    ends = tuple(jnp.broadcast_to(x, count) for x in (offset, first))
    found = lax.map(part, jax.tree.map(parted, (q, k.of_rows, v.of_rows, ends)))
    back = jnp.argsort(order)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:])[back], found)


def merge(
    one: tuple[Array, Array], other: tuple[Array, Array]
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """The result of `attend_tokens` over two sets of keys, from its results over each."""
    (out, lse), (more, more_lse) = one, other
    share = jax.nn.sigmoid(more_lse - lse)[..., None]
    return out + share * (more - out), jnp.logaddexp(lse, more_lse)


def with_shared(
    found: tuple[Array, Array],
    rule: Rule,
    q: Float[Array, "B T H K"],
    keys: Float[Array, "B G S K"],
    values: Float[Array, "B G S V"],
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """What `attend_tokens` found, with keys and values that every query sees, where it be."""
    plain = dataclasses.replace(rule, causal=False, window=0)
    return merge(found, attend_cache(plain, q, keys.astype(q.dtype), values.astype(q.dtype)))


def with_sinks(
    out: Float[Array, "B T H V"], lse: Float[Array, "B T H"], sinks: Float[Array, H]
) -> Float[Array, "B T H V"]:
    """The mixture `out` where each head has one more key, of score `sinks[h]` and value 0.

    A head that finds nothing can leave its weight there (arXiv 2309.17453, section 3.2, with a
    learned score in the place of SoftMax1's 0).
    """
    return out * jax.nn.sigmoid(lse - sinks.astype(jnp.float32))[..., None]


def _full(shape: tuple[int, ...], value: float, like: Array) -> Array:
    return collectives.as_varying(
        jnp.full(shape, value, jnp.float32), sorted(collectives.varying(like))
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    rule: Rule, q: Array, k: Array, v: Array, offset: Array, first: Array
) -> tuple[Array, Array]:
    return forward(rule, q, k, v, offset, first)


def forward(
    rule: Rule,
    q: Array,
    k: Array | PagedKeys,
    v: Array | PagedKeys,
    offset: Array,
    first: Array,
) -> tuple[Float[Array, "B G R T V"], Float[Array, "B G R T"]]:
    """`attend_cache` of [B, G, R, T, K], [B, G, S, K] and [B, G, S, V], without a derivative."""
    tiles = Tiles.of(rule, q, k)

    def row(state: None, at: Place, q: Array) -> tuple[None, tuple[Array, Array]]:
        def column(j: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, out = state
            see = tiles.visible(at, j, offset, first)
            scores, _ = tiles.scores(q, tiles.column(k, at, j), see)
            higher = jnp.maximum(top, jnp.max(scores, axis=-1))
            weights, kept = jnp.exp(scores - higher[..., None]), jnp.exp(top - higher)
            total = total * kept + jnp.sum(weights, axis=-1)
            out = out * kept[..., None] + weights_by_columns(weights, tiles.column(v, at, j))
            return higher, total, out

        shape = q.shape[:4]
        start = _full(shape, EMPTY, q), _full(shape, 0, q), _full((*shape, v.shape[-1]), 0, q)
        ends = tiles.seen(at, offset, first)
        top, total, out = tiles.each_column(ends, column, start)
        some = jnp.where(total == 0, 1, total)
        return None, (out / some[..., None], top + jnp.log(some))

    _, (out, lse) = tiles.each_row(row, None, q)
    return tiles.joined(out), tiles.joined(lse)


def backward(
    rule: Rule,
    inputs: tuple[Array, Array, Array, Array, Array],
    lse: Float[Array, "B G R T"],
    d_out: Float[Array, "B G R T V"],
    shift: Float[Array, "B G R T"],
) -> tuple[Array, Array, Array]:
    """Float32 gradients by q, k and v.

    Args:
      rule: see `Rule`.
      inputs: those of `forward`: q, k, v, offset and first.
      lse: over all keys that the queries have seen, here or elsewhere.
      d_out: gradient of the mixture.
      shift: sum(d_out * out) over channels, less the gradient of `lse`.
    """
    q, k, v, offset, first = inputs
    tiles = Tiles.of(rule, q, k)

    def row(state: tuple[Array, Array], at: Place, *blocks: Array) -> tuple[Any, Array]:
        q, lse, d_out, shift = blocks
        by_key, by_value = channels_first(q), channels_first(d_out.astype(v.dtype))

        def column(j: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_q, d_k, d_v = state
            key, value = tiles.column(k, at, j), tiles.column(v, at, j)
            with products.recomputed():
                scores, slope = tiles.scores(q, key, tiles.visible(at, j, offset, first))
            weights = jnp.exp(scores - lse[..., None])
            d_weights = rows_by_columns(d_out.astype(value.dtype), value)
            d_raw = weights * (d_weights - shift[..., None]) * slope
            d_q = d_q + weights_by_columns(d_raw, key)
            d_k = tiles.add(d_k, weights_by_rows(by_key, d_raw), at, j)
            d_v = tiles.add(d_v, weights_by_rows(by_value, weights), at, j)
            return d_q, d_k, d_v

        ends = tiles.seen(at, offset, first)
        d_q, d_k, d_v = tiles.each_column(ends, column, (_full(q.shape, 0, q), *state))
        return (d_k, d_v), d_q

    def none(x: Array) -> Array:
        batch, groups, tokens, size = x.shape
        return _full((batch, groups, size, tokens), 0, q)

    found, d_q = tiles.each_row(row, (none(k), none(v)), q, lse, d_out, shift)
    d_k, d_v = (jnp.swapaxes(x, 2, 3) for x in found)
    return tiles.joined(d_q), d_k, d_v


def _attend_forward(rule: Rule, *inputs: Array) -> tuple[Any, Any]:
    out, lse = (checkpoint_name(x, "attention") for x in forward(rule, *inputs))
    return (out, lse), (inputs, out, lse)


def _attend_backward(rule: Rule, saved: Any, gradients: tuple[Array, Array]) -> tuple[Any, ...]:
    inputs, out, lse = saved
    d_out, d_lse = gradients
    shift = jnp.sum(d_out * out, axis=-1) - d_lse
    found = backward(rule, inputs, lse, d_out, shift)
    return *(d.astype(x.dtype) for d, x in zip(found, inputs, strict=False)), None, None


_attend.defvjp(_attend_forward, _attend_backward)
