"""Caches whose rows stand at unlike places: writing, reading, and what they have room for."""

from __future__ import annotations

import jax
import jax.core
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from sharding.errors import UserError

BLOCK = 128
"""A cache that is made for a length has whole blocks of so many tokens."""


def cache_size(tokens: int, limit: int) -> int:
    """Places of a cache for a sequence of so many tokens: whole blocks, at most the limit."""
    return min(-(-max(tokens, 1) // BLOCK) * BLOCK, limit)


def write_rows(cache: Array, new: Array, places: Int[Array, B], axis: int) -> Array:
    """The cache with `new` in each row from that row's own place on.

    Args:
      cache: [B, ...], with tokens along `axis`.
      new: [B, ...], fewer tokens along `axis`; taken to the dtype of the cache.
      places: of the first new token in each row. What would reach beyond the end is moved to end
        there, as in `lax.dynamic_update_slice`.
      axis: that of tokens, counted with the rows.
    """

    def one(row: Array, part: Array, place: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(row, part, place, axis=axis - 1)

    return jax.vmap(one)(cache, new.astype(cache.dtype), places)


def append_rows(cache: Array, new: Array, places: Int[Array, B], axis: int) -> Array:
    """As `write_rows`, of a cache that is made longer first, so that `new` fits behind any row."""
    return write_rows(_longer(cache, new.shape[axis], axis), new, places, axis)


def read_rows(cache: Array, places: Int[Array, B], size: int, axis: int) -> Array:
    """`size` tokens of each row from that row's own place on; zeros beyond the end."""

    def one(row: Array, place: Array) -> Array:
        return lax.dynamic_slice_in_dim(row, place, size, axis=axis - 1)

    return jax.vmap(one)(_longer(cache, size, axis), places)


def _longer(x: Array, more: int, axis: int) -> Array:
    return jnp.pad(x, [(0, more if dim == axis else 0) for dim in range(x.ndim)])


def known_most(counts: Int[Array, B] | int) -> int:
    """The largest count of a row; 0 where it is traced, and so not known yet."""
    if isinstance(counts, int):
        return counts
    return 0 if isinstance(counts, jax.core.Tracer) else int(jnp.max(counts))


def check_fits(before: Int[Array, B] | int, total: int, limit: int | None, field: str) -> None:
    """That a cache has room, as far as is known when this is traced.

    Args:
      before: tokens of each row that came before.
      total: tokens of this call.
      limit: of a row; None for none.
      field: what is to be larger.

    Raises:
      UserError: it has not.
    """
    count = known_most(before) + total
    if limit is not None and count > limit:
        raise UserError(
            f"{count} tokens do not fit a cache of {limit}: give fewer, or set a larger {field}"
        )
