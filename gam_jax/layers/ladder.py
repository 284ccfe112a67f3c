"""A residual stream whose last update is still on its way, as later layers need not wait for it.

Source: Ladder Residual (arXiv 2501.06589). Half block k adds h_k(x_{k-2}) to x_{k-1}, where a plain
stack adds h_k(x_{k-1}). So the sum over devices that ends half block k - 1 may travel while half
block k computes.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, Protocol

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sharding import collectives


class Pending(NamedTuple):
    """The stream x_k as what is settled, x_{k-1}, and the update that half block k has begun."""

    settled: Float[Array, "B T D"]
    pending: Float[Array, "B T D"]

    @property
    def whole(self) -> Float[Array, "B T D"]:
        """The sum of both."""
        return self.settled + self.pending


Stream = Array | Pending
"""What blocks of a stack hand on: the stream, or the two parts of it."""


def begun(x: Float[Array, "B T D"]) -> Pending:
    """What enters a stack: nothing is on its way."""
    return Pending(x, collectives.typed_as(jnp.zeros_like(x), x))


def ended(stream: Stream) -> Float[Array, "B T D"]:
    """The stream itself."""
    return stream.whole if isinstance(stream, Pending) else stream


class Residuals(Protocol):
    """The stream as half blocks meet it."""

    def read(self) -> Float[Array, "B T D"]:
        """What the next half block computes from."""
        ...

    def plus(self, change: Float[Array, "B T D"]) -> Residuals:
        """The stream after it."""
        ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """The stream of a plain stack."""

    x: Float[Array, "B T D"]

    def read(self) -> Float[Array, "B T D"]:
        """All of it."""
        return self.x

    def plus(self, change: Float[Array, "B T D"]) -> Whole:
        """The sum."""
        return Whole(self.x + change)


@dataclasses.dataclass(frozen=True)
class InTwo:
    """The stream of a stack with a ladder.

    Attributes:
      stream: its two parts.
      early: whether what is on its way is left out of what is read; an array where that is not
        known when this is compiled.
    """

    stream: Pending
    early: bool | Array

    def read(self) -> Float[Array, "B T D"]:
        """What is settled, or all."""
        if self.early is True:
            return self.stream.settled
        if self.early is False:
            return self.stream.whole
        return jnp.where(self.early, self.stream.settled, self.stream.whole)

    def plus(self, change: Float[Array, "B T D"]) -> InTwo:
        """The update before is settled, and this one on its way."""
        settled = self.stream.whole
        pending = collectives.typed_as(lax.convert_element_type(change, settled.dtype), settled)
        return InTwo(Pending(settled, pending), self.early)
