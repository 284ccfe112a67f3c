"""Dropout that is the same on every mesh."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt32

from sharding import collectives, residual
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
    dropped = round(rate * 2**32)
    keep = _bits(x.shape, key, axes) >= jnp.uint32(dropped)
    return jnp.where(keep, x * (1 / (1 - dropped / 2**32)), 0).astype(x.dtype)


def draw(shape: tuple[int, ...], key: Array, axes: Axes = Axes()) -> Float[Array, "B T D"]:
    """Numbers from U(0, 1), one for each element, the same on every mesh."""
    return _bits(shape, key, axes).astype(jnp.float32) * 2.0**-32


def _bits(shape: tuple[int, ...], key: Array, axes: Axes) -> UInt32[Array, "B T D"]:
    """32 random bits for each element of this device's part of [B, T, D]."""
    rows, tokens, width = shape
    first_token = jnp.uint32(residual.first_token(tokens, axes))
    row, token, channel = (lax.broadcasted_iota(jnp.uint32, shape, dim) for dim in range(3))
    row = _global_row(row, rows // max(axes.streams, 1), axes)
    length = jnp.uint32(tokens * math.prod(map(collectives.axis_size, axes.tokens)))
    place = (row * length + first_token + token) * jnp.uint32(width) + channel
    return _hash(place * jnp.uint32(_ODD) + jax.random.bits(key))


def _global_row(row: Array, rows: int, axes: Axes) -> Array:
    """Place of this device's row in the global batch of `rows` rows a device, stream by stream."""
    first = jnp.uint32(collectives.axis_index(axes.rows)) * jnp.uint32(rows)
    if not axes.streams:
        return first + row
    stream, row = row // jnp.uint32(rows), row % jnp.uint32(rows)
    stream = jnp.uint32(collectives.axis_index(axes.of("stream")) * axes.streams) + stream
    return stream * jnp.uint32(rows * collectives.axis_size(axes.rows)) + first + row


_ODD = 0x9E3779B9  # spreads neighbouring places over all 32 bits


def _hash(x: Array) -> Array:
    """Mixes 32 bits: C. Wellons' lowbias32 (hash-prospector), found by search for least bias."""
    x = (x ^ x >> 16) * jnp.uint32(0x7FEB352D)
    x = (x ^ x >> 15) * jnp.uint32(0x846CA68B)
    return x ^ x >> 16
