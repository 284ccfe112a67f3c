"""The inverse of unit lower triangular matrices, in batched matrix products."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BASE = 8
"""Blocks of this size and below are not halved any more."""


@jax.custom_vjp
def unit_lower_inverse(lower: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """(I + lower)^-1 of strictly lower triangular matrices; C is a power of two.

    By halving: the inverse of [[A, 0], [B, D]] is [[A', 0], [-D' B A', D']]. It is as stable as
    substitution, unlike powers of `lower` beyond small blocks, and many times faster on CPU than
    batched triangular solves.
    """
    size = lower.shape[-1]
    small = min(BASE, size)
    inverse = _small_inverse(_diagonal_blocks(lower, small, 0))
    while small < size:
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        below = _diagonal_blocks(lower, small, small)
        inverse = grow(inverse, -(second @ (below @ first)))
        small *= 2
    return inverse[..., 0, :, :]


def _forward(lower: Array) -> tuple[Array, Array]:
    inverse = unit_lower_inverse(lower)
    return inverse, inverse


def _backward(inverse: Array, g: Array) -> tuple[Array]:
    turned = jnp.swapaxes(inverse, -1, -2)
    return (-jnp.tril(turned @ (g @ turned), -1),)


unit_lower_inverse.defvjp(_forward, _backward)


def grow(diagonal: Float[Array, "*B M s s"], below: Float[Array, "*B M/2 s s"]) -> Array:
    """Lower triangular blocks [..., M/2, 2s, 2s] of pairs on the diagonal and what is below."""
    first, second = diagonal[..., 0::2, :, :], diagonal[..., 1::2, :, :]
    top = jnp.concatenate([first, jnp.zeros_like(below)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([below, second], axis=-1)], axis=-2)


def _diagonal_blocks(x: Array, size: int, down: int) -> Array:
    """[..., M, size, size]: blocks `down` rows under the diagonal, a block or every other one."""
    step = size + down
    starts = range(0, x.shape[-1], step)
    blocks = [x[..., i + down : i + down + size, i : i + size] for i in starts]
    return jnp.stack(blocks, axis=-3)


def _small_inverse(lower: Array) -> Array:
    """(I - L)(I + L^2)(I + L^4)..., exact since L^C = 0."""
    size = lower.shape[-1]
    eye = jnp.eye(size, dtype=lower.dtype)
    inverse, power, reach = eye - lower, lower, 2
    while reach < size:
        power = power @ power
        inverse = inverse @ (eye + power)
        reach *= 2
    return inverse
