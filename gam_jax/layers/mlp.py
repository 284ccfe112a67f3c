"""Feed-forward layers."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float

from gam_jax.layers.base import WHOLE, Layer, known
from gam_jax.ops.activation import gelu
from gam_jax.ops.dropout import dropout
from gam_jax.ops.linear import linear, linear_transposed
from gam_jax.params import Param, Params, Table, fan_in
from sharding import residual
from sharding.axes import Axes


@dataclasses.dataclass(frozen=True)
class MLP(Layer):
    """W_out GELU(W_in x + b_in) + b_out, with dropout on the result.

    Attributes:
      width: D.
      expansion: hidden units for each channel; F = expansion * D.
      dropout: rate in training.
    """

    width: int | None = None
    expansion: int = 4
    dropout: float | None = None

    def table(self) -> Table:
        """w_in [D, F], b_in [F], w_out [D, F], b_out [D]."""
        width = known(self.width, "width", self)
        hidden = self.expansion * width
        return {
            "w_in": Param((width, hidden), ("embed", "ffn"), fan_in(width)),
            "b_in": Param((hidden,), ("ffn",), fan_in(width), decay=False),
            "w_out": Param((width, hidden), ("embed", "ffn"), fan_in(hidden)),
            "b_out": Param((width,), ("embed",), fan_in(hidden), decay=False),
        }

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: tuple[()] | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[()]]:
        """Column-parallel in, row-parallel out: hidden units are summed where they are split."""
        x = residual.enter(x, axes, "ffn")
        flat = x.reshape(-1, x.shape[-1])
        hidden = gelu(linear(flat, params["w_in"], params["b_in"]))
        partial = linear_transposed(hidden, params["w_out"]).reshape(x.shape)
        out = residual.leave_sum(partial, axes.of("ffn"), axes) + params["b_out"]
        return dropout(out, self.dropout or 0.0, key, axes), ()
