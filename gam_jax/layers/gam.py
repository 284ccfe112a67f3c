"""Gated Associative Memory: a causal convolution beside a memory bank, fused by gates."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, known, parted
from gam_jax.ops.conv import causal_conv, reach
from gam_jax.ops.linear import by_rows, linear
from gam_jax.ops.memory import memory_read
from gam_jax.ops.sparse_memory import sparse_read
from gam_jax.params import Param, Params, Table, fan_in, normal, uniform, zeros
from gam_jax.units import Part, Unit, UnitTable
from sharding import collectives, residual
from sharding.axes import Axes
from sharding.bounds import Count, Size, check_bounds

VARIANTS = ("full", "sum", "global", "local")


@dataclasses.dataclass(frozen=True)
class GAM(Layer):
    """The token mixer of the Gated Associative Memory paper (arXiv 2509.00605).

    y_t = sigmoid(u_t) * conv(x)_t + sigmoid(v_t) * read(x_t), with gates (u_t, v_t) = x_t W + b.

    The read is softmax(x_t Mem^T) Mem. The bank Mem is a weight: it does not depend on the
    sequence, so a token sees only the (`kernel` - 1) * `dilation` tokens before it, through the
    convolution.

    Attributes:
      width: D.
      slots: M, rows of the bank.
      kernel: K, taps of the convolution.
      dilation: tokens between two taps; 1 in the paper.
      top: each token reads its `top` best slots alone; 0 for all, as in the paper.
      slot_bias: whether each slot's score has a learned bias, 0 at first. With it, copies of slots
        share what their original weighed.
      offset: the carry also holds an offset [B, D] of the queries to the bank, 0 unless a start is
        learned: what makes streams of a bank differ (see `ParScale`), which keeps no state.
      variant: "full"; or the paper's ablations, all without gates: "sum" (conv + read),
        "global" (read alone), "local" (conv alone).
    """

    width: Size | None = None
    slots: Size = 512
    kernel: Size = 3
    dilation: Size = 1
    top: Count = 0
    variant: str = "full"
    offset: bool = False
    slot_bias: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.variant not in VARIANTS:
            raise ValueError(f"GAM.variant '{self.variant}' is not one of {', '.join(VARIANTS)}")
        if self.top > self.slots:
            raise ValueError(f"GAM.top {self.top} is not from 0 (all) to GAM.slots = {self.slots}")

        if self.slot_bias and (self.top or not self._reads):
            raise ValueError("GAM.slot_bias is of a read of all slots: leave out top and 'local'")

    @property
    def _convolves(self) -> bool:
        return self.variant != "global"

    @property
    def _reads(self) -> bool:
        return self.variant != "local"

    @property
    def _moves(self) -> bool:
        return self.offset and self._reads

    def table(self) -> Table:
        """conv [K, D] and bias, memory [M, D], gate [D, 2, D] (local, global) and bias."""
        width = known(self.width, "width", self)
        table: dict[str, Param] = {}
        if self._convolves:
            table["conv"] = Param((self.kernel, width), (None, "channel"), fan_in(self.kernel))
            table["conv_bias"] = Param((width,), ("channel",), fan_in(self.kernel), decay=False)
        if self._reads:
            xavier = uniform((6 / (self.slots + width)) ** 0.5)
            table["memory"] = Param((self.slots, width), ("slot", "embed"), xavier)
        if self.slot_bias:
            table["slot_bias"] = Param((self.slots,), ("slot",), zeros, decay=False)
        if self.variant == "full":
            table["gate"] = Param((width, 2, width), ("embed", None, "channel"), fan_in(width))
            table["gate_bias"] = Param((2, width), (None, "channel"), fan_in(width), decay=False)
        return table

    def unit_table(self) -> UnitTable:
        """slots: keys and values at once, in a softmax; none where nothing is read."""
        if not self._reads:
            return {}
        bias = (Part("slot_bias", 0),) if self.slot_bias else ()
        reason = "" if bias else "a softmax without slot_bias weighs them"
        fixed = "a token reads its best slots alone" if self.top else ""
        return {
            "slots": Unit(
                (Part("memory", 0),), logits=bias, equal=reason, fixed=fixed, unweighed=reason
            )
        }

    def with_units(self, name: str, size: int) -> GAM:
        """With so many slots."""
        if name == "slots":
            return dataclasses.replace(self, slots=size)
        return super().with_units(name, size)

    def silent(self) -> tuple[str, ...]:
        """The bank and the convolution."""
        convolution = ("conv", "conv_bias") if self._convolves else ()
        return (*convolution, "memory") if self._reads else convolution

    def carry_table(self, batch: int) -> Any:
        """The inputs before the next token that it sees [B, H, D], H = (K-1) * dilation.

        With an offset, these are "tail" beside "offset" [B, D].
        """
        width = known(self.width, "width", self)
        halo = reach(self.kernel, self.dilation) if self._convolves else 0
        tail = Param((batch, halo, width), ("batch", None, "channel"), zeros)
        if not self._moves:
            return tail
        # As large as the queries, which are normed: streams of smaller ones stay alike.
        return {"tail": tail, "offset": Param((batch, width), ("batch", "embed"), normal(1.0))}

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
        """Channels are split between the two pathways and their fusion, slots inside the read."""
        before, begin = parted(self.carry(x.shape[0], axes) if carry is None else carry)
        after, offset = (before["tail"], before["offset"]) if self._moves else (before, None)
        begin = begin["tail"] if self._moves else begin
        channels = axes.of("channel")
        logits = None
        if self.variant == "full":
            gates = {name: params[name] for name in ("gate", "gate_bias")}
            x, logits = residual.enter_map(by_rows(_gate_logits), gates, x, axes, "channel")
        else:
            x = residual.enter(x, axes, "channel")
        flat = x.reshape(-1, x.shape[-1])
        pathways = []
        if self._convolves:
            own = collectives.own_shard(x, channels, dim=2)
            local, after = causal_conv(
                own,
                params["conv"],
                params["conv_bias"],
                state=after,
                dilation=self.dilation,
                axis=axes.seq,
                starts=starts,
                begin=begin,
            )
            pathways.append(local.reshape(flat.shape[0], -1))
        if self._reads:
            queries = flat if offset is None else self._moved(x, offset, axes.of("slot"))
            pathways.append(self._read(queries, params, axes.of("slot"), channels))
        if logits is not None:
            logits = logits.reshape(flat.shape[0], -1)
            gates = jnp.split(jax.nn.sigmoid(logits), 2, axis=1)
            pathways = [g * p for g, p in zip(gates, pathways, strict=True)]
        fused = functools.reduce(jnp.add, pathways).reshape(*x.shape[:2], -1)
        after = after if offset is None else {"tail": after, "offset": offset}
        return residual.leave_channels(fused, channels, axes), after

    def _moved(self, x: Array, offset: Array, slots: str | None) -> Array:
        """Queries [N, D]; the offset's gradient is summed over slots while it is [B, D]."""
        offset = collectives.as_varying(offset, slots) if slots else offset
        return (x + offset.astype(x.dtype)[:, None]).reshape(-1, x.shape[-1])

    def _read(self, x: Array, params: Params, slots: str | None, channels: str | None) -> Array:
        bank = params["memory"]
        if self.top:
            return sparse_read(x, bank, self.top, slots, channels)
        return memory_read(x, bank, slots, channels, bias=params.get("slot_bias"))


def _gate_logits(params: Params, x: Float[Array, "N D"]) -> tuple[Array, Array]:
    """The tokens themselves, and the logits [N, 2 d] of the gates of this device's channels."""
    gate = params["gate"]
    return x, linear(x, gate.reshape(gate.shape[0], -1), params["gate_bias"].reshape(-1))
