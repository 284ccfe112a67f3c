"""The least that may stand in a layer's place: one matrix, and nothing."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Layer, known
from gam_jax.ops.linear import by_rows, linear_flat
from gam_jax.params import Param, Params, Table, fan_in
from gam_jax.units import ALL_CHANNELS, WIDTH, Part, Unit, UnitTable
from sharding import residual
from sharding.axes import Axes
from sharding.bounds import Size


@dataclasses.dataclass(frozen=True)
class Linear(Layer):
    """y = x W of each token alone: what a mixer or a feed-forward may be replaced by.

    Source: Puzzle (arXiv 2411.19146), section 2.

    Attributes:
      width: D.
    """

    width: Size | None = None

    def table(self) -> Table:
        """weight [D, D]."""
        width = known(self.width, "width", self)
        return {"weight": Param((width, width), ("embed", "channel"), fan_in(width))}

    def unit_table(self) -> UnitTable:
        """The width: column j makes channel j, row j takes it."""
        part = "weight"
        return {WIDTH: Unit((Part(part, 1),), (Part(part, 0),), equal=ALL_CHANNELS)}

    def silent(self) -> tuple[str, ...]:
        """weight."""
        return ("weight",)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: tuple[()] | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[()]]:
        """Each device makes channels of its own."""
        y = residual.enter_map(by_rows(linear_flat), params["weight"], x, axes, "channel")
        return residual.leave_channels(y, axes.of("channel"), axes), ()


@dataclasses.dataclass(frozen=True)
class NoOp(Layer):
    """y = 0: in a block, a step that adds nothing. It has no parameters, see `Block.steps`.

    Source: Puzzle (arXiv 2411.19146), section 2.
    """

    def table(self) -> Table:
        """Nothing."""
        return {}

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: tuple[()] | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[()]]:
        """Zeros."""
        return jnp.zeros_like(x), ()
