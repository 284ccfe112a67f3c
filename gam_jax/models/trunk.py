"""Blocks and the last norm, as one layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Bool, Float

from gam_jax import params as tables
from gam_jax.layers.base import WHOLE, Carry, Layer, told
from gam_jax.layers.block import Stack
from gam_jax.params import Params, Table
from sharding.axes import Axes


class Ready(NamedTuple):
    """Parameters of blocks in the dtype of the arithmetic, each block's by itself."""

    blocks: Any


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

    def apart(self, carry: Carry, part: Callable[[Any, int], Any]) -> Carry:
        """That of the blocks."""
        return self.stack.apart(carry, part)

    def ready(self, params: Params, dtype: str) -> Params:
        """Parameters as a loop over tokens reads them, beside a carry `apart`."""
        blocks = tables.cast(self.stack.table(), params["blocks"], dtype)
        return self.apart_params({**params, "blocks": blocks}, lambda x, i: x[i])

    def apart_params(self, params: Params, part: Callable[[Any, int], Any]) -> Params:
        """`ready` without the cast; or what stands in the place of parameters, such as specs."""
        return {**params, "blocks": Ready(self.stack.apart(params["blocks"], part))}

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
        blocks = params["blocks"]
        if isinstance(blocks, Ready):
            x, after = self.stack(blocks.blocks, x, carry, axes, key=key, **told(starts))
        else:
            x, after = self.run(blocks, x, carry, axes, key=key, starts=starts)
        return self.normed(params, x, axes), after

    def run(
        self,
        blocks: Params,
        x: Array,
        carry: Carry | None,
        axes: Axes,
        *,
        key: Array | None = None,
        starts: Array | None = None,
        before: Array | int = 0,
        depth: int = 0,
        count: Array | None = None,
    ) -> tuple[Array, Carry]:
        """The blocks alone.

        Args:
          blocks: their parameters.
          x: the inputs.
          carry: see `Layer.__call__`.
          axes: mesh axes.
          key: for dropout.
          starts: see `Layer.__call__`.
          before: blocks that stand before the first of these.
          depth: how many these are; 0 for all.
          count: see `Stack`.
        """
        stack = dataclasses.replace(self.stack, depth=depth or self.stack.depth)
        blocks = tables.cast(self.stack.table(), blocks, x.dtype)
        return stack(blocks, x, carry, axes, key=key, before=before, count=count, **told(starts))

    def normed(self, params: Params, x: Array, axes: Axes) -> Array:
        """The last norm alone."""
        return self.norm(params["final_norm"], x, None, axes)[0]
