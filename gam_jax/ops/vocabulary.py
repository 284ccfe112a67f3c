"""Cross-entropy of a tied head, with the vocabulary split or whole."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sharding import collectives


def token_losses(
    hidden: Float[Array, "N D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, "N"],
    axis: str | None = None,
) -> Float[Array, "N"]:
    """-log softmax(hidden embedding^T)[target] in nats, float32.

    Args:
      hidden: the last layer's outputs.
      embedding: this device's rows of the tied embedding.
      targets: global token ids.
      axis: mesh axis that splits the vocabulary. Its parts meet in a maximum and two sums; no
        device ever holds whole logits (Megatron-LM, arXiv 2104.04473).
    """
    logits = jnp.dot(hidden, embedding.T, preferred_element_type=jnp.float32)
    top = collectives.pmax(jnp.max(logits, axis=-1), axis)
    total = collectives.psum(jnp.sum(jnp.exp(logits - top[:, None]), axis=-1), axis)
    rows = embedding.shape[0]
    local = targets - collectives.axis_index(axis) * rows
    here = (local >= 0) & (local < rows)
    picked = jnp.take_along_axis(logits, jnp.clip(local, 0, rows - 1)[:, None], axis=1)[:, 0]
    target_logit = collectives.psum(jnp.where(here, picked, 0), axis)
    return jnp.log(total) + top - target_logit


def embed(
    tokens: Int[Array, "B T"], embedding: Float[Array, "V D"], axis: str | None = None
) -> Float[Array, "B T D"]:
    """Rows of the embedding; with the vocabulary split, each device gives its own and they add."""
    if axis is None:
        return jnp.take(embedding, tokens, axis=0)
    rows = embedding.shape[0]
    local = tokens - collectives.axis_index(axis) * rows
    here = (local >= 0) & (local < rows)
    found = jnp.take(embedding, jnp.clip(local, 0, rows - 1), axis=0)
    return collectives.psum(jnp.where(here[..., None], found, 0), axis)
