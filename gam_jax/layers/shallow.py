"""Layers side by side: a stack turned into one wide parallel sum."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, inherit, told
from gam_jax.params import Params, Table, stack
from sharding.axes import Axes
from sharding.bounds import Rate, Size, check_bounds


@dataclasses.dataclass(frozen=True)
class Shallow(Layer):
    """h + sum_i F_i(h), where block i alone would give h + F_i(h).

    A stack multiplies (I + F_i); this keeps the terms of first order (Bermeitinger et al. 2023,
    "Make Deep Networks Shallow Again", arXiv 2309.08414). All blocks see the same input, so the
    sum is one wide layer. A stack of such layers is one in groups.

    Attributes:
      block: a residual layer.
      depth: how many, side by side; the parameters are those of a `Stack` as deep.
    """

    block: Layer
    depth: Size
    width: Size | None = None
    dropout: Rate | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        block = inherit(self.block, width=self.width, dropout=self.dropout)
        object.__setattr__(self, "block", block)

    def table(self) -> Table:
        """The block's table with a leading axis `layer`."""
        return stack(self.block.table(), self.depth)

    def carry_table(self, batch: int) -> Any:
        """The block's, with a leading axis `layer`."""
        return stack(self.block.carry_table(batch), self.depth)

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
        """All blocks at once; block i draws its randomness from fold_in(key, i)."""

        def change(params: Params, carry: Carry, index: Array) -> tuple[Array, Carry]:
            own = None if key is None else jax.random.fold_in(key, index)
            y, carry = self.block(params, x, carry, axes, key=own, **told(starts))
            return y - x, carry

        changes, after = jax.vmap(change)(params, carry, jnp.arange(self.depth))
        return x + jnp.sum(changes, axis=0), after
