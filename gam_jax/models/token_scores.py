"""What is found for each token that a language model predicts, and its sums over a mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gam_jax.models.base import Batch
from gam_jax.ops.cross_entropy import Head, loss_sum
from sharding import collectives, residual
from sharding.axes import Axes

TokenMeasure = Callable[[Array, Array, Array, Head], Any]
"""(hidden [N, D], head, targets [N], how) -> arrays [N], see `ops.cross_entropy`."""


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """The outputs of a model beside what they should say, on one device.

    Attributes:
      head: this device's rows, see `ops.vocabulary`.
      hidden: [B, t, D], this device's tokens of the residual stream.
      batch: targets and weights, [B, T].
      axes: mesh axes.
      block: tokens of a block of logits, at most.
      size: V where rows of the head are padded; None where they are not.
      cap: of the logits, see `ops.cross_entropy.capped`.
    """

    head: Array
    hidden: Array
    batch: Batch
    axes: Axes
    block: int
    size: int | None = None
    cap: float = 0.0

    def loss(self) -> Float[Array, ""]:
        """The weighted sum of cross-entropies in nats, over all devices."""
        arrays, weights, how = self._given()
        return self._over_devices(loss_sum(*arrays, weights.reshape(-1), how))

    def sums(self, measure: TokenMeasure) -> Any:
        """The weighted sums over all devices of what is found for a token."""
        arrays, weights, how = self._given()
        each = weights.reshape(-1)
        return jax.tree.map(
            lambda found: self._over_devices(jnp.sum(found * each)), measure(*arrays, how)
        )

    def whole(self, measure: TokenMeasure) -> Any:
        """What is found for each token of this device's shard of the sequence, [B, T]."""
        arrays, weights, how = self._given()

        def gather(found: Array) -> Array:
            return collectives.all_gather(found.reshape(weights.shape), self._split, dim=1)

        return jax.tree.map(gather, measure(*arrays, how))

    @property
    def _split(self) -> str | None:
        """What splits the tokens T that are scored here, if anything."""
        return self.axes.residual if self.axes.of("vocab") is None else None

    def _over_devices(self, total: Array) -> Array:
        spread = self.axes.batch if self._split is None else (*self.axes.batch, self._split)
        return collectives.psum(total, spread)

    def _given(self) -> tuple[tuple[Array, Array, Array], Array, Head]:
        """Outputs [N, D], the head and targets [N] of this device; weights; how logits come."""
        targets, weights, hidden = self.batch["targets"], self.batch["weights"], self.hidden
        vocab = self.axes.of("vocab")
        if vocab is not None:
            hidden = residual.enter(hidden, self.axes, "vocab")
        elif self._split:  # each device scores its own tokens of the stream
            own = functools.partial(collectives.own_shard, axis=self._split, dim=1)
            targets, weights = own(targets), own(weights)
        how = Head(vocab, self.size, self.cap, self.block)
        head, rows = self.head.astype(hidden.dtype), hidden.reshape(-1, hidden.shape[-1])
        return (rows, head, targets.reshape(-1)), weights, how
