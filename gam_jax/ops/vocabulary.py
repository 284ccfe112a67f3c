"""Rows of the embedding and of the head, with the vocabulary split or whole.

A vocabulary that the devices do not divide is padded in the program: each has as many rows, the
last ones none of the vocabulary's (`padded_rows`). They are no tokens: their logits are -inf
(`ops.cross_entropy`).

An id outside the vocabulary of V tokens, below 0 or from V on, gives NaN, split or not: a value
that nobody takes for a good one. Ids are refused by name on the host, see `gam_jax.ids`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sharding import collectives, residual
from sharding.axes import Axes


def padded_rows(embedding: Float[Array, "V D"], axis: str) -> Float[Array, "R D"]:
    """This device's rows of an embedding that every device holds whole, zeros after the last.

    R is V / n, rounded up. In the backward pass the gradients of all rows are gathered.

    Args:
      embedding: the same on all devices of `axis`.
      axis: mesh axis of n devices that splits the vocabulary.
    """
    return _padded_rows(embedding, axis, embedding.shape[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _padded_rows(embedding: Array, axis: str, size: int) -> Array:
    beyond = -size % collectives.axis_size(axis)
    return collectives.own_shard(jnp.pad(embedding, ((0, beyond), (0, 0))), axis, dim=0)


def _padded_rows_backward(axis: str, size: int, _: None, g: Array) -> tuple[Array]:
    return (collectives.all_gather(g, axis, dim=0)[:size],)


_padded_rows.defvjp(
    lambda x, axis, size: (_padded_rows(x, axis, size), None), _padded_rows_backward
)


def signed(ids: Array) -> Array:
    """Ids as int32, in which a number of rows and negative numbers have room."""
    return ids if ids.dtype.itemsize > 4 else ids.astype(jnp.int32)


def own_rows(ids: Array, embedding: Array, axis: str | None) -> tuple[Array, Array]:
    """The rows of the ids among this device's, and whether they are among them."""
    rows = embedding.shape[0]
    local = ids - collectives.axis_index(axis) * rows
    here = (local >= 0) & (local < rows)
    return jnp.clip(local, 0, rows - 1), here


def known_ids(ids: Array, embedding: Array, axis: str | None, size: int | None) -> Array:
    """Whether ids are of the whole vocabulary."""
    every = embedding.shape[0] * collectives.axis_size(axis)
    return (ids >= 0) & (ids < (every if size is None else size))


def embed(
    tokens: Int[Array, "B T"],
    embedding: Float[Array, "V D"],
    axes: Axes = Axes(),
    size: int | None = None,
) -> Float[Array, "B t D"]:
    """Rows of the embedding, in the layout of the residual stream.

    With the vocabulary split, each device gives the rows that it has and they add up. A token
    outside the vocabulary has a row of NaN.

    Args:
      tokens: global ids.
      embedding: this device's rows.
      axes: mesh axes.
      size: V where rows are padded; None where they are not.
    """
    axis, tokens = axes.of("vocab"), signed(tokens)
    if axis is None:
        own = collectives.own_shard(tokens, axes.residual, dim=1)
        beyond = jnp.where(own < 0, embedding.shape[0], own)  # else -1 would be the last row
        return jnp.take(embedding, beyond, axis=0, mode="fill", fill_value=jnp.nan)
    local, here = own_rows(tokens, embedding, axis)
    found = jnp.take(embedding, local, axis=0)
    known = known_ids(tokens, embedding, axis, size)
    here = here if size is None else here & known
    elsewhere = jnp.where(known, 0, jnp.nan).astype(found.dtype)
    return residual.leave_sum(jnp.where(here[..., None], found, elsewhere[..., None]), axis, axes)
