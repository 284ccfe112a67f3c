"""GAM with a memory that is written as the sequence is read."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, inherit, known, parted, told
from gam_jax.ops.conv import causal_conv
from gam_jax.ops.linear import linear
from gam_jax.ops.memory import memory_read
from gam_jax.params import Param, Params, Table, fan_in, uniform, zeros
from sharding import collectives, residual
from sharding.axes import Axes
from sharding.bounds import Count, Rate, Size, check_bounds


@dataclasses.dataclass(frozen=True)
class WrittenGAM(Layer):
    """The GAM mixer whose global pathway is a memory of the sequence, beside a bank or alone.

    y_t = sigmoid(u_t) * conv(x)_t + sigmoid(v_t) * memory(x)_t [+ sigmoid(w_t) * read(x_t)], with
    gates (u_t, v_t[, w_t]) = x_t W + b: the fusion of `GAM` (arXiv 2509.00605), one gate more.
    Any token can so reach any later one, which a bank of weights cannot make it do.

    Attributes:
      memory: any layer that mixes tokens.
      width: D.
      slots: M, rows of a bank beside the memory; 0 for none.
      kernel: K, taps of the convolution.
    """

    memory: Layer
    width: Size | None = None
    slots: Count = 0
    kernel: Size = 8
    dropout: Rate | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        memory = inherit(self.memory, width=self.width, dropout=self.dropout)
        object.__setattr__(self, "memory", memory)

    def table(self) -> Table:
        """conv [K, D], gate [D, 2 or 3, D] (local, memory, bank), their biases, memory, bank."""
        width = known(self.width, "width", self)
        paths = 3 if self.slots else 2
        gate = (width, paths, width)
        table: dict[str, Table | Param] = {
            "conv": Param((self.kernel, width), (None, "channel"), fan_in(self.kernel)),
            "conv_bias": Param((width,), ("channel",), fan_in(self.kernel), decay=False),
            "gate": Param(gate, ("embed", None, "channel"), fan_in(width)),
            "gate_bias": Param(gate[1:], (None, "channel"), fan_in(width), decay=False),
            "memory": self.memory.table(),
        }
        if self.slots:
            xavier = uniform((6 / (self.slots + width)) ** 0.5)
            table["bank"] = Param((self.slots, width), ("slot", "embed"), xavier)
        return table

    def carry_table(self, batch: int) -> Any:
        """The K-1 inputs before the next token [B, K-1, D], and the memory's carry."""
        shape = (batch, self.kernel - 1, known(self.width, "width", self))
        local = Param(shape, ("batch", None, "channel"), zeros)
        return {"local": local, "memory": self.memory.carry_table(batch)}

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
        """Channels are split between pathways and fusion; the memory is split as it is alone."""
        inside = None if carry is None else carry["memory"]
        memory, written = self.memory(params["memory"], x, inside, axes, key=key, **told(starts))
        before = self.carry(x.shape[0], axes) if carry is None else carry
        tail, begin = parted(before["local"])
        channels = axes.of("channel")
        x, memory = (residual.enter(part, axes, "channel") for part in (x, memory))
        flat = x.reshape(-1, x.shape[-1])
        own, memory = (collectives.own_shard(part, channels, dim=2) for part in (x, memory))
        local, after = causal_conv(
            own,
            params["conv"],
            params["conv_bias"],
            state=tail,
            axis=axes.seq,
            starts=starts,
            begin=begin,
        )
        pathways = [part.reshape(flat.shape[0], -1) for part in (local, memory)]
        if self.slots:
            pathways.append(memory_read(flat, params["bank"], axes.of("slot"), channels))
        gate = params["gate"]
        logits = linear(flat, gate.reshape(gate.shape[0], -1), params["gate_bias"].reshape(-1))
        gates = jnp.split(jax.nn.sigmoid(logits), len(pathways), axis=1)
        fused = functools.reduce(jnp.add, (g * p for g, p in zip(gates, pathways, strict=True)))
        y = residual.leave_channels(fused.reshape(*x.shape[:2], -1), channels, axes)
        return y, {"local": after, "memory": written}
