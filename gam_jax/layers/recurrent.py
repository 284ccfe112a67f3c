"""Recurrent networks: Elman, LSTM, GRU."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, known, parted
from gam_jax.ops.linear import linear
from gam_jax.ops.recurrence import Product, elman_step, gru_step, lstm_step, recurrent_scan
from gam_jax.params import Param, Params, Table, fan_in, zeros
from sharding import collectives, residual
from sharding.axes import Axes
from sharding.bounds import Size


def orthogonal_gates(key: Array, shape: tuple[int, ...]) -> Array:
    """[..., U, G, U]: an orthogonal matrix for each gate, which keeps the length of a state."""
    *stacked, units, gates, _ = shape
    draw = jax.nn.initializers.orthogonal()  # which would make one matrix of leading axes
    keys = jax.random.split(key, math.prod(stacked) * gates)
    found = jax.vmap(lambda key: draw(key, (units, units)))(keys)
    return jnp.swapaxes(found.reshape(*stacked, gates, units, units), -3, -2)


@dataclasses.dataclass(frozen=True)
class Recurrent(Layer):
    """What the three have in common; the width is that of the units, and the output is h.

    What inputs give to the gates is one product for all tokens, before the scan. Units are split
    by `channel`: a device steps its own, and h is gathered once a step (twice for a GRU that
    resets first), a message of [B, D] that cannot be put off. Where tokens are split, shards run
    one after another: see `exchange.relay`.

    Attributes:
      width: D.
      unroll: steps in one turn of the loop.
    """

    width: Size | None = None
    unroll: Size = 1

    gates: ClassVar[int]

    def table(self) -> Table:
        """w_in [D, G, D], w_state [D, G, D], bias [G, D]."""
        width = known(self.width, "width", self)
        matrix, axes = (width, self.gates, width), ("embed", None, "channel")
        return {
            "w_in": Param(matrix, axes, fan_in(width)),
            "w_state": Param(matrix, axes, orthogonal_gates),
            "bias": Param((self.gates, width), (None, "channel"), self._bias, decay=False),
        }

    def carry_table(self, batch: int) -> Any:
        """h after the last token [B, D]."""
        return Param((batch, known(self.width, "width", self)), ("batch", "channel"), zeros)

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
        """The states h; they are float32 inside."""
        channels = axes.of("channel")
        x = residual.enter(x, axes, "channel")
        w_in, bias = params["w_in"], params["bias"]
        flat = linear(x.reshape(-1, x.shape[2]), w_in.reshape(x.shape[2], -1), bias.reshape(-1))
        given = flat.astype(jnp.float32).reshape(*x.shape[:2], *bias.shape)
        inner = {name: params[name] for name in params if name not in ("w_in", "bias")}
        names = sorted(collectives.varying(given))
        inner = jax.tree.map(lambda p: collectives.as_varying(p, names), inner)
        state, begin = parted(self.carry(x.shape[0], axes) if carry is None else carry)
        states, after = recurrent_scan(
            lambda state, given: self._step(inner, state, given, channels),
            state,
            given,
            axes.seq,
            self.unroll,
            starts,
            begin if jax.tree.leaves(begin) else None,
        )
        return residual.leave_channels(self._output(states).astype(x.dtype), channels, axes), after

    def _bias(self, key: Array, shape: tuple[int, ...]) -> Array:
        return zeros(key, shape)

    def _step(self, params: Params, state: Any, given: Array, axis: str | None) -> Any:
        raise NotImplementedError

    def _output(self, states: Any) -> Array:
        return states


def product(weight: Float[Array, "D G U"], axis: str | None) -> Product:
    """A function that multiplies a state h [B, U] by `weight`, and gives the gates [B, G, U].

    Where `axis` splits the units, h is gathered from all devices first, and each device gets the
    gates of its own units.
    """
    flat = weight.reshape(weight.shape[0], -1)

    def multiply(h: Array) -> Array:
        if axis is not None:
            h = lax.all_gather(h, axis, axis=1, tiled=True)  # its gradient is reduce-scattered
        y = jnp.dot(h.astype(flat.dtype), flat, preferred_element_type=jnp.float32)
        return y.reshape(-1, *weight.shape[1:])

    return multiply


@dataclasses.dataclass(frozen=True)
class Elman(Recurrent):
    """h_t = tanh(W x_t + U h_{t-1} + b), see `gam_jax.ops.recurrence`."""

    gates: ClassVar[int] = 1

    def _step(self, params: Params, state: Any, given: Array, axis: str | None) -> Any:
        return elman_step(state, given, product(params["w_state"], axis))


@dataclasses.dataclass(frozen=True)
class LSTM(Recurrent):
    """Long short-term memory, see `gam_jax.ops.recurrence`. The forget gate's bias begins at 1."""

    gates: ClassVar[int] = 4

    def carry_table(self, batch: int) -> Any:
        """h and s after the last token, each [B, D]."""
        state = super().carry_table(batch)
        return (state, state)

    def _bias(self, key: Array, shape: tuple[int, ...]) -> Array:
        return zeros(key, shape).at[..., 1, :].set(1.0)

    def _step(self, params: Params, state: Any, given: Array, axis: str | None) -> Any:
        return lstm_step(state, given, product(params["w_state"], axis))

    def _output(self, states: Any) -> Array:
        return states[0]


@dataclasses.dataclass(frozen=True)
class GRU(Recurrent):
    """Gated recurrent unit, see `gam_jax.ops.recurrence`.

    Attributes:
      reset_first: the first paper's form; else that of cuDNN and PyTorch, which gathers h once
        a step instead of twice and has one more bias.
    """

    reset_first: bool = False

    gates: ClassVar[int] = 3

    def table(self) -> Table:
        """Those of `Recurrent`; without `reset_first`, state_bias [D] too."""
        table = dict(super().table())
        if not self.reset_first:
            shape = (known(self.width, "width", self),)
            table["state_bias"] = Param(shape, ("channel",), zeros, decay=False)
        return table

    def _step(self, params: Params, state: Any, given: Array, axis: str | None) -> Any:
        weight = params["w_state"]
        if self.reset_first:
            gates, candidate = product(weight[:, :2], axis), product(weight[:, 2:], axis)
            return gru_step(state, given, gates, candidate, True)
        together = product(weight, axis)(state)  # one gathering for all three
        bias = params["state_bias"].astype(jnp.float32)
        return gru_step(
            state, given, lambda _: together[:, :2], lambda _: together[:, 2:] + bias, False
        )
