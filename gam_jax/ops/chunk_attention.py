"""Causal attention inside chunks of a sequence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gam_jax.ops.documents import places
from sharding import collectives


def chunk_attention(
    q: Float[Array, "B T Z"],
    k: Float[Array, "B T Z"],
    v: Float[Array, "B T H"],
    bias: Float[Array, C],
    before: tuple[Float[Array, "B C Z"], Float[Array, "B C H"], Int[Array, B]] | None = None,
    axis: str | None = None,
    starts: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T H"], tuple[Array, Array, Array]]:
    """o_t = sum_s softmax_s(q_t k_s / sqrt(Z) + bias[t - s]) v_s over s <= t in the chunk of t.

    Chunks are of C tokens, counted from the start of the sequence; none sees another. Source:
    MEGA (arXiv 2209.10655), section 3.3 and its official code; the bias is its "simple" one,
    learned for each distance. Time and memory are O(T C). Softmax in float32.

    Args:
      q: queries of this device's tokens.
      k: their keys.
      v: their values.
      bias: by distance; its length is the size of a chunk.
      before: the last C keys and values, and how many tokens came before in each row, modulo C;
        None at the start of a sequence. Then chunks that end with a shard need no communication.
      axis: mesh axis that splits the tokens.
      starts: true at the first token of each document; chunks are then counted from there.

    Returns:
      o in the dtype of v, and what comes before the next token in the dtypes of `before`, or of k
      and v.
    """
    size, rows, tokens = bias.shape[0], *q.shape[:2]
    shards, own = collectives.axis_size(axis), collectives.axis_index(axis)
    aligned = before is None and starts is None and (shards == 1 or tokens % size == 0)
    if before is None:
        empty_k, empty_v = (jnp.zeros((rows, size, x.shape[2]), x.dtype) for x in (k, v))
        before = (empty_k, empty_v, jnp.zeros((), jnp.int32))
    keys, values, place = before
    if starts is None:
        after = jnp.broadcast_to((place + shards * tokens) % size, rows)
        place = (place + own * tokens) % size
    else:
        place, after = places(starts, jnp.broadcast_to(place, rows), axis)
        after = after % size
    keys, values = (
        jnp.concatenate([collectives.left_halo(x, past.astype(x.dtype), axis), x], axis=1)
        for x, past in ((k, keys), (v, values))
    )
    last_k, last_v = (
        collectives.from_last(x[:, tokens:], axis).astype(past.dtype)
        for x, past in zip((keys, values), before, strict=False)
    )
    # Of keys before a block none is seen, or as many as a chunk has.
    seen = (k, v, bias, place, 0) if aligned else (keys, values, bias, place, size)
    o = _blocks(q, *seen)
    return o, (last_k, last_v, after)


def _blocks(q: Array, keys: Array, values: Array, bias: Array, place: Array, past: int) -> Array:
    """Blocks of at most C queries, each over its own keys and the `past` ones before them.

    `place` is that of the first query, of all rows or [B], or of each query, [B, T].
    """
    (rows, tokens, width), size = q.shape, bias.shape[0]
    block = min(size, tokens)
    count = -(-tokens // block)
    pad = ((0, 0), (0, count * block - tokens), (0, 0))
    q = jnp.pad(q, pad).reshape(rows, count, block, width) * width**-0.5

    def windows(x: Array) -> Array:
        x = jnp.pad(x, pad)
        own = x[:, past:].reshape(rows, count, block, -1)
        if past == 0:
            return own
        starts = x[:, : count * block].reshape(rows, count, block, -1)
        if block == size:
            return jnp.concatenate([starts, own], axis=2)
        return x[:, None]  # one block, shorter than a chunk

    keys, values = windows(keys), windows(values)
    if place.ndim == 2:
        place = jnp.pad(place, pad[:2]).reshape(rows, count, block)
    else:
        own = jnp.arange(count * block).reshape(count, block)
        place = jnp.reshape(place, (-1, 1, 1)) + own
    key = jnp.arange(past + block)
    distance = past + jnp.arange(block)[:, None] - key
    reach = place % size  # [B or 1, n, block]
    seen = (distance >= 0) & (distance <= reach[..., None])
    scores = jnp.einsum("bnqz,bnkz->bnqk", q, keys, preferred_element_type=jnp.float32)
    scores = scores + bias.astype(jnp.float32)[jnp.clip(distance, 0, size - 1)]
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1).astype(values.dtype)
    o = jnp.einsum("bnqk,bnkh->bnqh", weights, values)
    return o.reshape(rows, count * block, -1)[:, :tokens]
