"""Rows that hold several documents: which tokens belong together, and their places."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from sharding import collectives


def segments(starts: Bool[Array, "B T"], axis: str | None = None) -> Int[Array, "B T"]:
    """How many documents of this call have begun by each token, int32.

    Tokens of one number belong together. Those of number 0 go on with the document of the carry;
    to all others the carry is nothing.

    Args:
      starts: true at the first token of each document.
      axis: mesh axis that splits the tokens; one number a row goes from each device to all.
    """
    own = jnp.cumsum(starts, axis=1, dtype=jnp.int32)
    return own + _earlier(own[:, -1], axis, 0, jnp.sum)[:, None]


def places(
    starts: Bool[Array, "B T"], before: Int[Array, B], axis: str | None = None
) -> tuple[Int[Array, "B T"], Int[Array, B]]:
    """The place of each token in its document, from 0; and how long the last document is by now.

    Args:
      starts: true at the first token of each document.
      before: tokens that the document of the carry has by now.
      axis: mesh axis that splits the tokens; one number a row goes from each device to all.
    """
    tokens = starts.shape[1]
    own = collectives.axis_index(axis) * tokens + jnp.arange(tokens)
    begun = lax.cummax(jnp.where(starts, own, -before[:, None]), axis=1)
    first = jnp.maximum(begun, _earlier(begun[:, -1], axis, -before, jnp.max)[:, None])
    whole = collectives.from_last(first[:, -1], axis)
    return own - first, tokens * collectives.axis_size(axis) - whole


@dataclasses.dataclass(frozen=True)
class Spans:
    """Where documents lie among the tokens of a call, for layers that count from their beginnings.

    Attributes:
      places: [B, T], of each token of this device in its document.
      begun: [B, T], the first token of its document, counted from the first of the call over all
        devices; below 0 where it began before.
      last: [B], the first token of the last document, likewise.
      after: [B], how long that is by now.
    """

    places: Array
    begun: Array
    last: Array
    after: Array


def spans_of(starts: Bool[Array, "B T"], before: Int[Array, B], axis: str | None = None) -> Spans:
    """The spans of documents; arguments as in `places`."""
    own, after = places(starts, before, axis)
    tokens = starts.shape[1]
    first = collectives.axis_index(axis) * tokens
    last = tokens * collectives.axis_size(axis) - after
    return Spans(own, first + jnp.arange(tokens) - own, last, after)


def _earlier(
    own: Array, axis: str | None, none: Array | int, reduce: Callable[..., Array]
) -> Int[Array, B]:
    """What `reduce` makes of the numbers of the devices before this one; `none` where none is."""
    if axis is None:
        return jnp.broadcast_to(jnp.asarray(none, jnp.int32), own.shape)
    every = collectives.all_gather(own[None], axis, dim=0)  # [devices, B]
    there = jnp.arange(every.shape[0])[:, None] < collectives.axis_index(axis)
    return reduce(jnp.where(there, every, none), axis=0)
