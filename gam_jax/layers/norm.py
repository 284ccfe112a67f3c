"""Normalisation layers."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Layer, known
from gam_jax.ops.norm import layer_norm, rms_norm
from gam_jax.params import Param, Params, Table, ones, zeros
from gam_jax.units import ALL_CHANNELS, WIDTH, Part, Unit, UnitTable
from sharding.axes import Axes
from sharding.bounds import NotNegative, Size


@dataclasses.dataclass(frozen=True)
class LayerNorm(Layer):
    """Layer normalisation with scale and bias, see `gam_jax.ops.norm`.

    Attributes:
      width: D.
      eps: added to the variance, so that nothing is divided by 0.
    """

    width: Size | None = None
    eps: NotNegative = 1e-5

    def table(self) -> Table:
        """scale [D] and bias [D]."""
        width = known(self.width, "width", self)
        return {
            "scale": Param((width,), ("embed",), ones, decay=False),
            "bias": Param((width,), ("embed",), zeros, decay=False),
        }

    def unit_table(self) -> UnitTable:
        """The width."""
        return {WIDTH: Unit((Part("scale", 0), Part("bias", 0)), equal=ALL_CHANNELS)}

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
        """Normalised x."""
        return layer_norm(x, params["scale"], params["bias"], self.eps), ()


@dataclasses.dataclass(frozen=True)
class RMSNorm(Layer):
    """Root-mean-square normalisation with a scale, see `gam_jax.ops.norm`.

    Attributes:
      width: D.
      eps: added to the mean square, so that nothing is divided by 0.
      centred: whether scales are 1 + the parameter, which begins as 0 (Gemma).
    """

    width: Size | None = None
    eps: NotNegative = 1e-5
    centred: bool = False

    def table(self) -> Table:
        """scale [D]."""
        shape = (known(self.width, "width", self),)
        return {
            "scale": Param(shape, ("embed",), zeros if self.centred else ones, decay=False),
        }

    def unit_table(self) -> UnitTable:
        """The width."""
        return {WIDTH: Unit((Part("scale", 0),), equal=ALL_CHANNELS)}

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
        """Normalised x."""
        scale = params["scale"]
        return rms_norm(x, 1 + scale if self.centred else scale, self.eps), ()
