"""Blocks and the last norm, as one layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from gam_jax import params as tables
from gam_jax.layers import ladder
from gam_jax.layers.base import WHOLE, Carry, Layer
from gam_jax.layers.ladder import Stream
from gam_jax.layers.stack import Stack
from gam_jax.params import Params, Table
from sharding.axes import Axes
from sharding.layout import Layout


class Ready(NamedTuple):
    """Parameters of blocks in the dtype of the arithmetic, each block's by itself."""

    blocks: Any


def is_ready(params: Params) -> bool:
    """Whether the parameters of a model or trunk are such."""
    return isinstance(params.get("blocks"), Ready)


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

    def ready(self, params: Params, dtype: str, layout: Layout) -> Params:
        """Parameters as a loop over tokens reads them, beside a carry `apart`."""
        blocks = tables.cast(self.stack.table(), params["blocks"], dtype)
        return self._apart_params({**params, "blocks": blocks}, lambda x, i: x[i], layout)

    def ready_specs(self, specs: Params, layout: Layout) -> Params:
        """How what `ready` returns lies, given how parameters do."""
        return self._apart_params(specs, lambda spec, _: PartitionSpec(*spec[1:]), layout)

    def _apart_params(
        self, params: Params, take: Callable[[Any, int], Any], layout: Layout
    ) -> Params:
        """On a processor experts lie by themselves too: there what is cut out is copied."""
        blocks = self.stack.apart(params["blocks"], take)
        if layout.axes.backend == "cpu" and layout.axes.of("expert") is None:
            blocks = self.stack.experts_apart(blocks, take)
        return {**params, "blocks": Ready(blocks)}

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
        stream, blocks = self.stack.begun(x), params["blocks"]
        run = self.run
        if is_ready(params):
            blocks, run = blocks.blocks, self.stack.run
        stream, after = run(blocks, stream, carry, axes, key=key, starts=starts)
        return self.normed(params, stream, axes), after

    def run(
        self, blocks: Params, stream: Stream, carry: Carry | None, axes: Axes, **given: Any
    ) -> tuple[Stream, Carry]:
        """The blocks alone, or some of them: see `Stack.run`."""
        dtype = jax.tree.leaves(stream)[0].dtype
        return self.stack.run(
            tables.cast(self.stack.table(), blocks, dtype), stream, carry, axes, **given
        )

    def normed(self, params: Params, stream: Stream, axes: Axes) -> Array:
        """The last norm alone."""
        return self.norm(params["final_norm"], ladder.ended(stream), None, axes)[0]
