"""Messages of numbers in few bits: blocks of integers with a scale, and sums in hops.

An array is cut into blocks of at most 256 numbers. With b bits a block's step is 2 max|x| / 2^b,
and a number becomes clip(round(x / step), -2^(b-1), 2^(b-1) - 1). A positive extreme loses one
step, 1/8 of itself at 4 bits; the mean square error is a little less so than with a step of
max|x| / (2^(b-1) - 1).

A ring that sums would round n - 1 times. Here each device sends every other its part at once and
sums what it receives in float32: values are rounded once, or twice where a sum goes first through
the inner levels of a group and then over the outermost.

Source: ZeRO++ (arXiv 2306.10209, qwZ and qgZ) and its released code, whose two hops divide by the
number of nodes and not of devices. Here all ways end in the same sum.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from sharding import collectives
from sharding.degrees import numbers
from sharding.errors import UserError

BLOCK = 256
"""Numbers that share a scale, at most."""

SCALE = 4
"""Bytes of a scale, a float32."""

CHOICES = (4, 8)
"""Bits that a number can be sent in."""


@dataclasses.dataclass(frozen=True)
class Bits:
    """In how many bits numbers are sent over the data axis; 0 for as they are.

    Attributes:
      weights: that layers are gathered from.
      gradients: that are scattered.
    """

    weights: int = 0
    gradients: int = 0


KINDS = tuple(field.name for field in dataclasses.fields(Bits))


def parsed(text: str, what: str = "parallel.bits") -> Bits:
    """ "weights:8,gradients:4" as bits; what is not named is sent as it is.

    Raises:
      UserError: an unknown kind, one given twice, or a number of bits that there is not.
    """
    found = numbers(text, KINDS, what)
    for kind, bits in found.items():
        if bits not in CHOICES:
            raise UserError(f"{what}={text}: {kind}:{bits}: give {' or '.join(map(str, CHOICES))}")
    return Bits(**found)


def blocks_of(count: int, bits: int, block: int = BLOCK) -> tuple[int, int]:
    """How many blocks so many numbers are cut into, and the size of each, whole bytes.

    Blocks are alike, so the last is filled up with zeros, but for less than two in each.
    """
    blocks = -(-count // block)
    per_byte = 8 // bits
    return blocks, per_byte * -(-count // (blocks * per_byte))


def coded_bytes(count: int, bits: int) -> int:
    """Bytes of so many numbers as they are sent."""
    blocks, size = blocks_of(count, bits)
    return blocks * (size * bits // 8 + SCALE)


def coded(x: Float[Array, "... N"], bits: int, block: int = BLOCK) -> UInt8[Array, "... K S"]:
    """Numbers as K blocks of bytes: integers, and the block's step.

    What is not finite makes its whole block so.
    """
    blocks, size = blocks_of(x.shape[-1], bits, block)
    lead = x.shape[:-1]
    x = jnp.pad(x.astype(jnp.float32), [(0, 0)] * len(lead) + [(0, blocks * size - x.shape[-1])])
    x = x.reshape(*lead, blocks, size)
    largest = 2 ** (bits - 1)
    step = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / largest
    whole = jnp.clip(jnp.round(x / jnp.where(step > 0, step, 1)), -largest, largest - 1)
    codes = jnp.nan_to_num(whole).astype(jnp.int8)
    if bits == 4:
        low, high = codes[..., ::2], codes[..., 1::2]
        codes = (low & 15) | (high << 4)
    step = jnp.where(jnp.isfinite(step), step, jnp.nan)
    scale = lax.bitcast_convert_type(step[..., 0], jnp.uint8)
    return jnp.concatenate([lax.bitcast_convert_type(codes, jnp.uint8), scale], axis=-1)


def decoded(
    x: UInt8[Array, "... K S"], bits: int, count: int, dtype: DTypeLike = jnp.float32
) -> Float[Array, "... N"]:
    """The `count` numbers that `coded` was given, each within half a step, its extreme within one.

    Args:
      x: as `coded` makes it.
      bits: of a number.
      count: how many numbers.
      dtype: of the result.
    """
    scale = lax.bitcast_convert_type(x[..., -SCALE:], jnp.float32)[..., None]
    codes = lax.bitcast_convert_type(x[..., :-SCALE], jnp.int8)
    if bits == 4:  # a shift to the left and back repeats the sign
        codes = jnp.stack([(codes << 4) >> 4, codes >> 4], axis=-1)
        codes = codes.reshape(*codes.shape[:-2], -1)
    found = codes.astype(jnp.float32) * scale
    return found.reshape(*x.shape[:-2], -1)[..., :count].astype(dtype)


def hops(axes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The groups that a sum goes through: all inner levels at once, then the outermost.

    Args:
      axes: the innermost first.
    """
    return tuple(filter(None, (tuple(axes[:-1]), tuple(axes[-1:]))))


def reduce_scatter(x: Array, axes: Sequence[str], dim: int, bits: int = 0) -> Array:
    """Sums over the axes and keeps this device's part of dimension `dim`, in one or two hops.

    Parts lie as `zero.scattered` leaves them: the innermost axis is the major one.

    Args:
      x: this device's term.
      axes: the innermost first.
      dim: that is split.
      bits: that numbers are sent in; 0 for as they are.
    """
    for group in hops(axes):
        devices = math.prod(map(lax.axis_size, group))
        own = x.shape[dim] // devices
        x = collectives.as_varying(x, group)
        parts = jnp.moveaxis(x, dim, 0).reshape(devices, own, *x.shape[:dim], *x.shape[dim + 1 :])
        shape = parts.shape[1:]
        parts = parts.reshape(devices, -1)
        if bits:
            sent = lax.all_to_all(coded(parts, bits), group, 0, 0, tiled=True)
            parts = decoded(sent, bits, math.prod(shape))
        else:
            parts = lax.all_to_all(parts, group, 0, 0, tiled=True)
        total = jnp.sum(parts, axis=0).astype(x.dtype)
        x = jnp.moveaxis(total.reshape(shape), 0, dim)
    return x
