"""Arrays of space or time made larger or smaller by a whole number, channels last."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sharding import collectives
from sharding.errors import UserError

NEAREST, LINEAR = "nearest", "linear"


def enlarged(
    x: Float[Array, "B *N D"], times: int, how: str = NEAREST, axis: str | None = None
) -> Float[Array, "B *M D"]:
    """x so many times as large along each axis of space.

    Args:
      x: channels last.
      times: outputs for each input.
      how: "nearest", each input so many times; "linear", between the middles of inputs, and the
        outermost ones beyond them, as PyTorch does without `align_corners`.
      axis: mesh axis that splits the first axis of space: "linear" then asks both neighbours for
        one input.

    Raises:
      UserError: another word, or less than once.
    """
    if how not in (NEAREST, LINEAR) or times < 1:
        raise UserError(
            f"enlarged: how='{how}', times={times}: give {NEAREST} or {LINEAR}, and at least 1"
        )
    for dim in range(1, x.ndim - 1):
        if how == NEAREST:
            x = jnp.repeat(x, times, dim)
        else:
            x = _between(x, times, dim, axis if dim == 1 else None)
    return x


def shrunk(x: Float[Array, "B *N D"], times: int) -> Float[Array, "B *M D"]:
    """Means of `times` neighbours along each axis of space, which it divides.

    Where devices split an axis, each part of it must be divided too; nothing is sent.

    Raises:
      UserError: it does not.
    """
    sides = x.shape[1:-1]
    if times < 1 or any(side % times for side in sides):
        raise UserError(f"shrunk: {times} does not divide all of {sides}")
    shape = [part for side in sides for part in (side // times, times)]
    over = tuple(range(2, 2 + 2 * len(sides), 2))
    return jnp.mean(x.reshape(len(x), *shape, x.shape[-1]), over)


def _between(x: Array, times: int, dim: int, axis: str | None) -> Array:
    """Output i t + p lies (p + 1/2) / t - 1/2 inputs behind input i."""
    x = jnp.moveaxis(x, dim, 1)
    flat = x.reshape(*x.shape[:2], -1)
    first, last = flat[:, :1], flat[:, -1:]
    before = collectives.left_halo(flat, first, axis)
    after = last
    if axis is not None:
        end = lax.axis_index(axis) == lax.axis_size(axis) - 1
        after = jnp.where(end, last, collectives.right_halo(flat, 1, axis))
    every = jnp.concatenate([before, flat, after], 1)
    left, right = every[:, :-2], every[:, 2:]
    parts = []
    for phase in range(times):
        place = (phase + 0.5) / times - 0.5
        other = left if place < 0 else right
        parts.append((1 - abs(place)) * flat + abs(place) * other)
    found = jnp.stack(parts, 2).reshape(len(x), -1, *x.shape[2:])
    return jnp.moveaxis(found, 1, dim)
