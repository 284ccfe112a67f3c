"""Retrieval from a bank of slots."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from gam_jax.ops.linear import linear, linear_transposed
from sharding import collectives


def memory_read(
    x: Float[Array, "N D"],
    bank: Float[Array, "M D"],
    slots: str | None = None,
    channels: str | None = None,
    bias: Float[Array, M] | None = None,
) -> Float[Array, "N D"]:
    """softmax(x bank^T) bank: each row of x retrieves a mixture of slots.

    The bank is key and value at once; scores have no scale. Source: Gated Associative Memory
    (arXiv 2509.00605), the global pathway.

    Args:
      x: queries.
      bank: this device's slots.
      slots: mesh axis that splits the slots. The softmax is completed with a maximum and a sum
        over it, and the retrieval is summed over it.
      channels: mesh axis that splits the result: each device keeps its own channels.
      bias: added to the scores, of this device's slots; None for none, as in the paper.

    Returns:
      The retrieval in the dtype of x; softmax in float32.
    """
    scores = linear_transposed(x, bank, jnp.float32)
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    top = collectives.pmax(jnp.max(scores, axis=-1, keepdims=True), slots)
    weights = jnp.exp(scores - top)
    total = collectives.psum(jnp.sum(weights, axis=-1, keepdims=True), slots)
    partial = linear((weights / total).astype(x.dtype), bank)
    if slots == channels:
        return collectives.reduce_scatter(partial, slots, dim=1)
    return collectives.own_shard(collectives.psum(partial, slots), channels, dim=1)
