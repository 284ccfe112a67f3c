"""Feed-forward layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Layer, known
from gam_jax.ops.activation import gelu
from gam_jax.ops.dropout import dropout
from gam_jax.ops.linear import by_rows, linear, linear_transposed
from gam_jax.params import Param, Params, Table, fan_in
from gam_jax.units import ALL_CHANNELS, WIDTH, Part, Unit, UnitTable
from sharding import residual
from sharding.axes import Axes
from sharding.bounds import Count, Positive, Rate, Size, check_bounds

CLAMPED = "clamped_swiglu"
GATED = {"swiglu": "silu", "geglu": "gelu", "geglu_tanh": "gelu_tanh", CLAMPED: "silu"}
"""Gated activations, and what each lays on its gate (Shazeer 2020, arXiv 2002.05202)."""

PLAIN: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021, arXiv 2109.08668
    "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class MLP(Layer):
    """W_out act(W_in x + b_in) + b_out, with dropout on the result.

    A gated one is W_out (act(W_gate x + b_gate) * (W_in x + b_in)) + b_out. The clamped one, with
    g = min(W_gate x + b_gate, clamp) and u = W_in x + b_in between -clamp and clamp, is
    W_out ((u + 1) * g * sigmoid(alpha * g)) + b_out (gpt-oss, arXiv 2508.10925).

    Attributes:
      width: D.
      expansion: hidden units for each channel; F = expansion * D.
      dropout: rate in training.
      activation: "gelu" (exact), "gelu_tanh", "relu", "relu2" (its square), "silu"; gated:
        "swiglu", "geglu", "geglu_tanh", "clamped_swiglu".
      hidden: F, where no whole expansion gives it; 0 for expansion * D.
      bias: whether there are biases.
      gate_scale: constant on what a gated activation is laid on.
      out_scale: constant on the result, its bias too.
      alpha, clamp: of the clamped activation.
    """

    width: Size | None = None
    expansion: Size = 4
    dropout: Rate | None = None
    activation: str = "gelu"
    hidden: Count = 0
    bias: bool = True
    gate_scale: float = 1.0
    out_scale: float = 1.0
    alpha: Positive = 1.702
    clamp: Positive = 7.0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.activation not in {**PLAIN, **GATED}:
            valid = ", ".join({**PLAIN, **GATED})
            raise ValueError(f"MLP.activation '{self.activation}' is not one of {valid}")

    def table(self) -> Table:
        """w_in [D, F] and b_in [F], w_out [D, F] and b_out [D]; gated: w_gate, b_gate as w_in."""
        width, hidden = known(self.width, "width", self), self.size
        table: dict[str, Param] = {}
        for name in self.inward:
            table[f"w_{name}"] = Param((width, hidden), ("embed", "ffn"), fan_in(width))
            if self.bias:
                table[f"b_{name}"] = Param((hidden,), ("ffn",), fan_in(width), decay=False)
        table["w_out"] = Param((width, hidden), ("embed", "ffn"), fan_in(hidden), transposed=True)
        if self.bias:
            table["b_out"] = Param((width,), ("embed",), fan_in(hidden), decay=False)
        return table

    @property
    def size(self) -> int:
        """F."""
        return self.hidden or self.expansion * known(self.width, "width", self)

    def unit_table(self) -> UnitTable:
        """hidden: column j of the maps inward makes unit j, column j of w_out takes it."""
        biases = tuple(Part(f"b_{name}", 0) for name in self.inward if self.bias)
        into = tuple(Part(f"w_{name}", 0) for name in self.inward)
        made = tuple(Part(f"w_{name}", 1) for name in self.inward)
        outward = (Part("w_out", 0), *((Part("b_out", 0),) if self.bias else ()))
        return {
            "hidden": Unit((*made, *biases), (Part("w_out", 1),)),
            WIDTH: Unit(outward, into, equal=ALL_CHANNELS),
        }

    def with_units(self, name: str, size: int) -> MLP:
        """With so many hidden units, or channels."""
        if name == "hidden":
            return dataclasses.replace(self, hidden=size)
        return dataclasses.replace(super().with_units(name, size), hidden=self.size)

    def silent(self) -> tuple[str, ...]:
        """w_out, and its bias."""
        return ("w_out", "b_out") if self.bias else ("w_out",)

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
        """Column-parallel in, row-parallel out: hidden units are summed where they are split."""
        inward = {name: p for name, p in params.items() if not name.endswith("_out")}
        units = residual.enter_map(by_rows(self.units), inward, x, axes, "ffn")
        outward = by_rows(self.from_units)
        out = residual.leave_map(outward, params["w_out"], units, axes.of("ffn"), axes)
        if self.bias:
            out = out + self.scaled_bias(params)
        return dropout(out, self.dropout or 0.0, key, axes), ()

    def scaled_bias(self, params: Params) -> Float[Array, "*E D"]:
        """b_out as it is added to the sum of what hidden units add."""
        bias = params["b_out"]
        return bias if self.out_scale == 1 else self.out_scale * bias

    @property
    def inward(self) -> tuple[str, ...]:
        """Names of the maps whose results `activated` takes."""
        return ("in", "gate") if self.activation in GATED else ("in",)

    def partial(self, params: Params, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
        """What this device's hidden units add, without b_out; `params` are its own units'."""
        return self.from_units(params["w_out"], self.units(params, x))

    def units(self, params: Params, x: Float[Array, "N D"]) -> Float[Array, "N F"]:
        """The hidden units; `params` are those of the maps inward."""
        found = (linear(x, params[f"w_{name}"], params.get(f"b_{name}")) for name in self.inward)
        return self.activated(*found)

    def from_units(self, w_out: Float[Array, "D F"], units: Float[Array, "N F"]) -> Array:
        """What hidden units add [N, D], without b_out."""
        partial = linear_transposed(units, w_out)
        return partial if self.out_scale == 1 else self.out_scale * partial

    def activated(self, hidden: Array, gate: Array | None = None) -> Array:
        """The hidden units, number by number."""
        if gate is None:
            return PLAIN[self.activation](hidden)
        gate = gate if self.gate_scale == 1 else self.gate_scale * gate
        if self.activation != CLAMPED:
            return PLAIN[GATED[self.activation]](gate) * hidden
        gate = jnp.minimum(gate, self.clamp)
        hidden = jnp.clip(hidden, -self.clamp, self.clamp)
        return (hidden + 1) * gate * jax.nn.sigmoid(self.alpha * gate)
