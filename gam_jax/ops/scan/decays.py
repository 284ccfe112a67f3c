"""Products of decays inside a chunk, from their logarithms, exact down to decays of zero."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

LEAST = -87.0
"""exp of it is about the smallest normal float32: what decays by more is gone."""

GRID = 256.0


class Decays(NamedTuple):
    """Running sums of log-decays, in parts that float32 holds exactly.

    A sum of many logs loses the last digits of each, and a log of zero (-inf) would spread NaN
    through differences. So each log is split into a multiple of 1/256, whose sums are exact, and
    a rest, whose sums stay small; decays of zero are counted instead. Gradients pass by the rest.

    Attributes:
      coarse: sum of the multiples of 1/256.
      fine: sum of the rests.
      zeros: how many decays so far were zero.
    """

    coarse: Array
    fine: Array
    zeros: Array

    def at(self, index: slice | int, axis: int) -> Decays:
        """Those at some places of `axis`."""
        where = (slice(None),) * (axis % self.fine.ndim) + (index,)
        return Decays(*(part[where] for part in self))

    def expand(self, axis: int) -> Decays:
        """With an axis of one more."""
        return Decays(*(jnp.expand_dims(part, axis) for part in self))

    def since(self, earlier: Decays, mask: Bool[Array, ...] | None = None) -> Array:
        """The product of the decays after `earlier` up to these; 0 where `mask` is False."""
        alive = self.zeros == earlier.zeros
        log = (self.coarse - earlier.coarse) + (self.fine - earlier.fine)
        return jnp.exp(jnp.where(alive if mask is None else alive & mask, log, -jnp.inf))

    def from_start(self) -> Array:
        """The product of all decays so far."""
        return jnp.exp(jnp.where(self.zeros == 0, self.coarse + self.fine, -jnp.inf))


def running(
    log_decay: Float[Array, "*L"], axis: int, among: Float[Array, "*B C C"] | None = None
) -> Decays:
    """Sums of log-decays along `axis`, each including its own.

    With `among`, see `together`, for the axis -2, they begin anew with each document: a difference
    of sums, and its gradient, then has no rounding of what stands in another.
    """
    log = log_decay.astype(jnp.float32)
    gone = log < LEAST
    log = jnp.where(gone, 0.0, log)
    coarse = lax.stop_gradient(jnp.round(log * GRID) / GRID)
    zeros = _running_sum(gone.astype(jnp.float32), axis)
    if among is None:
        return Decays(_running_sum(coarse, axis), _running_sum(log - coarse, axis), zeros)
    coarse, fine = (jnp.matmul(among, x, precision="highest") for x in (coarse, log - coarse))
    return Decays(coarse, fine, zeros)


def together(starts: Float[Array, "*B C 1"]) -> Float[Array, "*B C C"]:
    """1 where the token of a row sees that of a column, of its document and not after it."""
    number = _running_sum(starts, -2)
    return jnp.tril((number == jnp.swapaxes(number, -1, -2)).astype(jnp.float32))


def begun(log_decay: Float[Array, "B T *S"], starts: Bool[Array, "B T"]) -> Float[Array, "B T *S"]:
    """Decays of zero where documents begin: there nothing of the state before is left.

    As zeros are counted, tokens of two documents are kept apart by a mask, never by what is left
    of a difference of sums; and no gradient goes to the decay that stood there.
    """
    there = starts.reshape(*starts.shape, *(1,) * (log_decay.ndim - 2))
    return jnp.where(there, -jnp.inf, log_decay)


def _running_sum(x: Array, axis: int) -> Array:
    """As a product with a triangle of ones where the axis is short: fast on CPU."""
    size = x.shape[axis]
    if size > 256:
        return jnp.cumsum(x, axis)
    ones = jnp.tri(size, dtype=x.dtype)
    return jnp.moveaxis(jnp.tensordot(x, ones, (axis, 1), precision="highest"), -1, axis)
