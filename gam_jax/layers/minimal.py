"""Minimal gated recurrences, whose gates do not look at the state: parallel in time."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Layer, known, parted
from gam_jax.ops.linear import by_rows, linear_flat, transposed_flat
from gam_jax.ops.scan import diagonal_scan
from gam_jax.params import Param, Params, Table, fan_in, zeros
from sharding import residual
from sharding.axes import Axes
from sharding.bounds import Size, check_bounds

GATES = {"gru": 1, "lstm": 2}


@dataclasses.dataclass(frozen=True)
class MinimalRNN(Layer):
    """minGRU and minLSTM (Feng et al. 2024, "Were RNNs All We Needed?", arXiv 2410.01201).

    gru (section 3.1): h_t = (1 - z_t) h_{t-1} + z_t c_t, z = sigmoid(x W_z + b).
    lstm (section 3.2): h_t = f'_t h_{t-1} + i'_t c_t, with f, i = sigmoid(x W + b) scaled to
    f' + i' = 1.
    The candidate is c = g(x W_c + b), g(u) = u + 0.5 for u >= 0 and sigmoid(u) below (appendix
    B), so states stay positive. They are read through W_out, which joins the channels.

    Attributes:
      width: D.
      expansion: E / D, E channels of the state.
      variant: "gru" or "lstm".
      method, chunk: of the scan, see `gam_jax.ops.scan.diagonal_scan`.
    """

    width: Size | None = None
    expansion: Size = 1
    variant: str = "gru"
    method: str = "chunked"
    chunk: Size = 64

    computed: ClassVar[tuple[str, ...]] = ("method", "chunk")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.variant not in GATES:
            raise ValueError(f"MinimalRNN.variant '{self.variant}' is not one of gru, lstm")

    @property
    def inner(self) -> int:
        """E."""
        return self.expansion * known(self.width, "width", self)

    def table(self) -> Table:
        """w_in [D, gates + 1, E] (the candidate last) and bias, w_out [D, E]."""
        width, parts = known(self.width, "width", self), GATES[self.variant] + 1
        shape, bias = (width, parts, self.inner), (parts, self.inner)
        return {
            "w_in": Param(shape, ("embed", None, "channel"), fan_in(width)),
            "b_in": Param(bias, (None, "channel"), fan_in(width), decay=False),
            "w_out": Param(
                (width, self.inner), ("embed", "channel"), fan_in(self.inner), transposed=True
            ),
        }

    def carry_table(self, batch: int) -> Param:
        """The state [B, E]."""
        return Param((batch, self.inner), ("batch", "channel"), zeros)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Float[Array, "B E"] | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B E"]]:
        """Channels of the state are split, and summed on the way out."""
        state, begin = parted(self.carry(x.shape[0], axes) if carry is None else carry)
        w_in, dtype = params["w_in"], x.dtype
        logits = residual.enter_map(by_rows(linear_flat), w_in, x, axes, "channel")
        logits = logits.astype(jnp.float32) + params["b_in"].reshape(-1)
        *gates, candidate = jnp.split(logits, len(w_in[0]), axis=2)
        keep, write = self._gates(*gates)
        candidate = jnp.where(candidate >= 0, candidate + 0.5, jax.nn.sigmoid(candidate))
        states, last = diagonal_scan(
            keep,
            jnp.exp(write) * candidate,
            state=state,
            method=self.method,
            chunk=self.chunk,
            axis=axes.seq,
            starts=starts,
            begin=begin,
            backend=axes.backend,
        )
        outward, w_out, split = by_rows(transposed_flat), params["w_out"], axes.of("channel")
        return residual.leave_map(outward, w_out, states.astype(dtype), split, axes), last

    def _gates(self, *gates: Array) -> tuple[Array, Array]:
        """Logarithms of what is kept and of what is written; the two sum to 1."""
        if self.variant == "gru":
            return jax.nn.log_sigmoid(-gates[0]), jax.nn.log_sigmoid(gates[0])
        forget, write = (jax.nn.log_sigmoid(gate) for gate in gates)
        return jax.nn.log_sigmoid(forget - write), jax.nn.log_sigmoid(write - forget)
