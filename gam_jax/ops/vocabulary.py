"""Cross-entropy of a tied head, and rows of the embedding, with the vocabulary split or whole.

A vocabulary that the devices do not divide is padded in the program: each has as many rows, the
last ones none of the vocabulary's (`padded_rows`). They are no tokens: their logits are -inf.

An id outside the vocabulary of V tokens, below 0 or from V on, gives NaN, split or not: a value
that nobody takes for a good one. Ids are refused by name on the host, see `gam_jax.ids`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sharding import collectives, residual
from sharding.axes import Axes


def token_losses(
    hidden: Float[Array, "N D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, N],
    axis: str | None = None,
    size: int | None = None,
    cap: float = 0.0,
) -> Float[Array, N]:
    """-log softmax(hidden embedding^T)[target] in nats, float32.

    Args:
      hidden: the last layer's outputs.
      embedding: this device's rows of the tied embedding.
      targets: global token ids. One outside the vocabulary has a loss and a gradient of NaN.
      axis: mesh axis that splits the vocabulary. Its parts meet in a maximum and two sums; no
        device ever holds whole logits (Megatron-LM, arXiv 2104.04473).
      size: V where rows are padded; None where they are not.
      cap: of the logits, see `capped`.
    """
    targets = _signed(targets)
    local, here = _own_rows(targets, embedding, axis)
    known = _known(targets, embedding, axis, size)
    hidden, embedding = collectives.vary_alike(hidden, embedding)
    return _losses(hidden, embedding, local, here, known, axis, size, cap)


def capped(logits: Float[Array, "*sizes"], cap: float) -> Float[Array, "*sizes"]:
    """cap * tanh(logits / cap) (Gemma 2, arXiv 2408.00118, section 2); 0 for none."""
    return cap * jnp.tanh(logits / cap) if cap else logits


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


def _logits(
    hidden: Array, embedding: Array, axis: str | None, size: int | None, cap: float
) -> Array:
    """Float32 logits of this device's rows."""
    logits = capped(jnp.dot(hidden, embedding.T, preferred_element_type=jnp.float32), cap)
    if size is None:
        return logits
    rows = embedding.shape[0]
    place = collectives.axis_index(axis) * rows + jnp.arange(rows)
    return jnp.where(place < size, logits, -jnp.inf)


def _signed(ids: Array) -> Array:
    """Ids as int32, in which a number of rows and negative numbers have room."""
    return ids if ids.dtype.itemsize > 4 else ids.astype(jnp.int32)


def _own_rows(ids: Array, embedding: Array, axis: str | None) -> tuple[Array, Array]:
    """The rows of the ids among this device's, and whether they are among them."""
    rows = embedding.shape[0]
    local = ids - collectives.axis_index(axis) * rows
    here = (local >= 0) & (local < rows)
    return jnp.clip(local, 0, rows - 1), here


def _known(ids: Array, embedding: Array, axis: str | None, size: int | None) -> Array:
    """Whether ids are of the whole vocabulary."""
    every = embedding.shape[0] * collectives.axis_size(axis)
    return (ids >= 0) & (ids < (every if size is None else size))


def token_hits(
    hidden: Float[Array, "N D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, N],
    axis: str | None = None,
    size: int | None = None,
    cap: float = 0.0,
) -> Float[Array, N]:
    """1 where the target is the likeliest token, else 0; of equally likely ones the first.

    Not differentiated. NaN for a target outside the vocabulary.

    Args:
      hidden: the last layer's outputs.
      embedding: this device's rows of the head.
      targets: global token ids.
      axis: mesh axis that splits the vocabulary.
      size: V where rows are padded; None where they are not.
      cap: of the logits, see `capped`.
    """
    rows, targets = embedding.shape[0], _signed(targets)
    logits = _logits(hidden, embedding, axis, size, cap)
    own = jnp.max(logits, axis=-1)
    first = jnp.argmax(logits, axis=-1) + collectives.axis_index(axis) * rows
    # The least id of those that reach the maximum, as a maximum of negated ids.
    reaches = own >= collectives.pmax(own, axis)
    beyond = rows * collectives.axis_size(axis)
    likeliest = -collectives.pmax(-jnp.where(reaches, first, beyond), axis)
    hits = (likeliest == targets).astype(jnp.float32)
    return jnp.where(_known(targets, embedding, axis, size), hits, jnp.nan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _losses(
    hidden: Array,
    embedding: Array,
    local: Array,
    here: Array,
    known: Array,
    axis: str | None,
    size: int | None,
    cap: float,
) -> Array:
    return _losses_forward(hidden, embedding, local, here, known, axis, size, cap)[0]


def _losses_forward(
    hidden: Array,
    embedding: Array,
    local: Array,
    here: Array,
    known: Array,
    axis: str | None,
    size: int | None,
    cap: float,
) -> tuple[Array, tuple[Array | None, ...]]:
    logits = _logits(hidden, embedding, axis, size, cap)
    top = collectives.pmax(jnp.max(logits, axis=-1), axis)
    picked = jnp.take_along_axis(logits, local[:, None], axis=1)[:, 0]
    exps = jnp.exp(logits - top[:, None])
    total = collectives.psum(jnp.sum(exps, axis=-1), axis)
    total = jnp.where(known, total, jnp.nan)
    target_logit = collectives.psum(jnp.where(here, picked, 0), axis)
    losses = jnp.log(total) + top - target_logit
    return losses, (hidden, embedding, local, here, exps, total, logits if cap else None)


def _losses_backward(
    axis: str | None, size: int | None, cap: float, saved: tuple[Any, ...], g: Array
) -> tuple[Array, Array, None, None, None]:
    """The gradient of the logits is (exps - total * onehot) * g / total.

    The row factor g / total goes to the small operands, so that the large array is passed over
    as seldom as can be. A cap's slope is 1 - (logit / cap)^2.
    """
    hidden, embedding, local, here, exps, total, logits = saved
    rows = jnp.arange(hidden.shape[0])
    exps = exps.at[rows, local].add(
        jnp.where(here, -total, 0), unique_indices=True, indices_are_sorted=True
    )
    if cap:  # padded rows have -inf, and exps of 0
        exps = exps * (1 - (jnp.maximum(logits, -cap) / cap) ** 2)
    factor = (g / total)[:, None]
    to_hidden = jnp.dot(exps, embedding) * factor
    to_embedding = jnp.dot(exps.T, hidden * factor)
    return to_hidden.astype(hidden.dtype), to_embedding.astype(embedding.dtype), None, None, None


_losses.defvjp(_losses_forward, _losses_backward)


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
    axis, tokens = axes.of("vocab"), _signed(tokens)
    if axis is None:
        own = collectives.own_shard(tokens, axes.residual, dim=1)
        beyond = jnp.where(own < 0, embedding.shape[0], own)  # else -1 would be the last row
        return jnp.take(embedding, beyond, axis=0, mode="fill", fill_value=jnp.nan)
    local, here = _own_rows(tokens, embedding, axis)
    found = jnp.take(embedding, local, axis=0)
    known = _known(tokens, embedding, axis, size)
    here = here if size is None else here & known
    elsewhere = jnp.where(known, 0, jnp.nan).astype(found.dtype)
    return residual.leave_sum(jnp.where(here[..., None], found, elsewhere[..., None]), axis, axes)
