"""What is found for each token that a language model predicts, and its sums over a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from gam_jax.models.base import Batch
from sharding import collectives, residual
from sharding.axes import Axes

TokenMeasure = Callable[[Array, Array, Array, str | None, int | None, float], Array]
"""(hidden [N, D], head, targets [N], axis of the vocabulary, its size if padded, cap) -> [N]."""


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """The outputs of a model beside what they should say, on one device.

    Attributes:
      head: this device's rows, see `ops.vocabulary`.
      hidden: [B, t, D], this device's tokens of the residual stream.
      batch: targets and weights, [B, T].
      axes: mesh axes.
      size: V where rows of the head are padded; None where they are not.
      cap: of the logits, see `ops.vocabulary.capped`.
    """

    head: Array
    hidden: Array
    batch: Batch
    axes: Axes
    size: int | None = None
    cap: float = 0.0

    def sum(self, measure: TokenMeasure) -> Float[Array, ""]:
        """The weighted sum over all devices of what is found for a token."""
        found, weights, split = self._each(measure)
        spread = self.axes.batch if split is None else (*self.axes.batch, split)
        return collectives.psum(jnp.sum(found * weights), spread)

    def whole(self, measure: TokenMeasure) -> Float[Array, "B T"]:
        """What is found for each token of this device's shard of the sequence."""
        found, _, split = self._each(measure)
        return collectives.all_gather(found, split, dim=1)

    def _each(self, measure: TokenMeasure) -> tuple[Array, Array, str | None]:
        """What is found for a token [B, t], its weight, and what splits T into t, if any."""
        targets, weights, hidden = self.batch["targets"], self.batch["weights"], self.hidden
        vocab = self.axes.of("vocab")
        split = self.axes.residual if vocab is None else None
        if vocab is not None:
            hidden = residual.enter(hidden, self.axes, "vocab")
        elif split is not None:  # each device scores its own tokens of the stream
            targets, weights = (collectives.own_shard(x, split, dim=1) for x in (targets, weights))
        head, rows = self.head.astype(hidden.dtype), hidden.reshape(-1, hidden.shape[-1])
        found = measure(rows, head, targets.reshape(-1), vocab, self.size, self.cap)
        return found.reshape(targets.shape), weights, split
