"""Retrieval from the best few slots of a large bank."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from gam_jax.ops.linear import linear_transposed
from sharding import collectives

BLOCK = 4096
"""Slots scored at a time."""


def sparse_read(
    x: Float[Array, "N D"],
    bank: Float[Array, "M D"],
    top: int,
    slots: str | None = None,
    channels: str | None = None,
    block: int = BLOCK,
) -> Float[Array, "N D"]:
    """`gam_jax.ops.memory.memory_read` over the `top` best slots of each row alone.

    Every slot is scored, a block at a time, so time is O(N M D) but memory O(N (block + top D)).
    top = M is the dense read. Gradients go to the chosen slots, through their scores and their
    contents; which are chosen has none.

    Args:
      x: queries.
      bank: this device's slots.
      top: slots read by each row.
      slots: mesh axis that splits the slots. Each device finds its own best; their scores (N top
        numbers a device) are gathered to find the best of all; each reads those that it has.
      channels: mesh axis that splits the result: each device keeps its own channels.
      block: slots scored at a time.

    Returns:
      The retrieval in the dtype of x; softmax in float32.

    Raises:
      ValueError: more to be read than there are.
    """
    own, parts = bank.shape[0], collectives.axis_size(slots)
    if not 1 <= top <= own * parts:
        raise ValueError(f"cannot read the best {top} of {own * parts} slots")
    x, bank = collectives.vary_alike(x, bank)
    scores, chosen = best_slots(lax.stop_gradient(x), lax.stop_gradient(bank), top, block)
    rows = bank[chosen]  # [N, top, D]
    kept = _best_of_all(scores, top, slots)
    fresh = jnp.einsum("nd,nkd->nk", x, rows, preferred_element_type=jnp.float32)
    weights = _softmax(jnp.where(kept, fresh, -jnp.inf), slots)
    partial = jnp.einsum("nk,nkd->nd", weights.astype(x.dtype), rows)
    return _leave(partial, slots, channels)


def best_slots(
    x: Float[Array, "N D"], bank: Float[Array, "M D"], top: int, block: int = BLOCK
) -> tuple[Float[Array, "N k"], Int[Array, "N k"]]:
    """Scores x bank^T and places of the k = min(top, M) best slots, best first.

    Of equal scores the first slots are taken.
    """
    total = bank.shape[0]
    top, block = min(top, total), min(block, total)
    count = total // block

    def score(part: Array, first: Array | int) -> tuple[Array, Array]:
        scores, places = lax.top_k(linear_transposed(x, part, jnp.float32), min(top, len(part)))
        return scores, places + first

    def better(best: tuple[Array, Array], new: tuple[Array, Array]) -> tuple[Array, Array]:
        scores, places = (jnp.concatenate(pair, axis=1) for pair in zip(best, new, strict=True))
        scores, order = lax.top_k(scores, min(top, scores.shape[1]))
        return scores, jnp.take_along_axis(places, order, axis=1)

    def step(best: tuple[Array, Array], index: Array) -> tuple[tuple[Array, Array], None]:
        part = lax.dynamic_slice_in_dim(bank, index * block, block)
        return better(best, score(part, index * block)), None

    none = (jnp.full((x.shape[0], top), -jnp.inf), jnp.zeros((x.shape[0], top), jnp.int32))
    best = collectives.typed_as(none, jax.eval_shape(score, bank[:block], 0))
    best, _ = lax.scan(step, best, jnp.arange(count))
    return better(best, score(bank[count * block :], count * block)) if total % block else best


def product_read(
    query: Float[Array, "N Q 2 K"],
    keys: Float[Array, "Q 2 R K"],
    values: Float[Array, "M D"],
    top: int,
    slots: str | None = None,
    channels: str | None = None,
) -> Float[Array, "N D"]:
    """Sums over Q heads of softmax-weighted values of the best slots, found by two half keys.

    Slot i R + j, of M = R^2, has the score query_0 . keys_0[i] + query_1 . keys_1[j]. The best
    `top` of all are among the pairs of the best `top` of each half, so time is
    O(N Q (R K + top^2)), that is, it grows with the root of M. top = M is the dense read.
    Source: product-key memory, Lample et al. 2019 (arXiv 1907.05242), section 3.

    Args:
      query: two halves for each head.
      keys: R half keys of each kind for each head, whole on every device.
      values: this device's slots, shared by the heads.
      top: slots read by each row and head.
      slots: mesh axis that splits the values. All devices find the same slots, and each reads
        those that it has.
      channels: mesh axis that splits the result.

    Raises:
      ValueError: values that are not R^2, or more to be read than there are.
    """
    side, own = keys.shape[2], values.shape[0]
    if own * collectives.axis_size(slots) != side**2 or not 1 <= top <= side**2:
        raise ValueError(
            f"product_read of {side}^2 keys, {own * collectives.axis_size(slots)} values and the "
            f"best {top}: the values must be as many as pairs of keys, the best at most as many"
        )
    halves = jnp.einsum("nhck,hcrk->nhcr", query, keys, preferred_element_type=jnp.float32)
    half_scores, half_places = lax.top_k(halves, min(top, side))
    pairs = half_scores[:, :, 0, :, None] + half_scores[:, :, 1, None, :]
    scores, order = lax.top_k(pairs.reshape(*pairs.shape[:2], -1), top)
    first, second = jnp.divmod(order, half_scores.shape[-1])
    chosen = jnp.take_along_axis(half_places[:, :, 0], first, axis=-1) * side
    chosen = (chosen + jnp.take_along_axis(half_places[:, :, 1], second, axis=-1)).reshape(
        len(query), -1
    )
    weights = jax.nn.softmax(scores, axis=-1).reshape(len(query), -1)
    local = chosen - collectives.axis_index(slots) * own
    here = (local >= 0) & (local < own)
    rows = values[jnp.clip(local, 0, own - 1)]
    partial = jnp.einsum("nk,nkd->nd", jnp.where(here, weights, 0).astype(values.dtype), rows)
    return _leave(partial, slots, channels)


def _best_of_all(scores: Array, top: int, axis: str | None) -> Array:
    """Which of this device's best are among the best of all devices, [N, k]."""
    if axis is None:
        return jnp.ones_like(scores, bool)
    own = scores.shape[1]
    every = collectives.all_gather(scores, axis, dim=1)
    _, places = lax.top_k(every, top)
    kept = jnp.zeros(every.shape, bool).at[jnp.arange(len(every))[:, None], places].set(True)
    return lax.dynamic_slice_in_dim(
        collectives.as_varying(kept, axis), lax.axis_index(axis) * own, own, axis=1
    )


def _softmax(scores: Array, axis: str | None) -> Array:
    """Over the last dimension and the devices of `axis`; a device may have none but -inf."""
    top = collectives.pmax(jnp.max(scores, axis=-1, keepdims=True), axis)
    weights = jnp.exp(scores - top)
    return weights / collectives.psum(jnp.sum(weights, axis=-1, keepdims=True), axis)


def _leave(partial: Array, slots: str | None, channels: str | None) -> Array:
    if slots == channels:
        return collectives.reduce_scatter(partial, slots, dim=1)
    return collectives.own_shard(collectives.psum(partial, slots), channels, dim=1)
