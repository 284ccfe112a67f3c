"""Blocks and the last norm, as one layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array, Bool, Float

from gam_jax import params as tables
from gam_jax.layers.base import WHOLE, Carry, Layer, told
from gam_jax.layers.block import Stack
from gam_jax.params import Params, Table
from sharding.axes import Axes


@dataclasses.dataclass(frozen=True)
class Trunk(Layer):
    """What lies between embedding and head: blocks, which compute in the dtype of x, and a norm."""

    stack: Stack
    norm: Layer

    def table(self) -> Table:
        """blocks; final_norm, which is not cast to the dtype of the blocks."""
        norm = tables.precise(self.norm.table())
        return {"blocks": self.stack.table(), "final_norm": norm}

    def carry_table(self, batch: int) -> Any:
        """That of the blocks."""
        return self.stack.carry_table(batch)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Carry | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """One after the other."""
        blocks = tables.cast(self.stack.table(), params["blocks"], x.dtype)
        x, after = self.stack(blocks, x, carry, axes, key=key, **told(starts))
        x, _ = self.norm(params["final_norm"], x, None, axes)
        return x, after
