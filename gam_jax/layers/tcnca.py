"""Temporal convolution network with chunked attention."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, known, parted, row_counter
from gam_jax.ops.chunk_attention import chunk_attention
from gam_jax.ops.conv import reach, segmented_conv
from gam_jax.ops.documents import segments
from gam_jax.ops.dropout import dropout
from gam_jax.ops.linear import linear
from gam_jax.params import Param, Params, Table, fan_in, normal, ones, zeros
from sharding import collectives, residual
from sharding.axes import Axes
from sharding.bounds import Few, Rate, Size, check_bounds

VARIANTS = ("full", "simple")
STD = 0.02
"""Of projections at the start, as in MEGA's code."""


@dataclasses.dataclass(frozen=True)
class TCN(Layer):
    """A stack of dilated causal depthwise convolutions: x <- x + silu(conv_i(x)), level by level.

    Level i has dilation factor^i. A token sees itself and `span` before it, every one of them
    where factor <= kernel, and with one convolution a level and factor = kernel by one path each.
    Operations grow with the levels, the span with their exponential. Source: Bai et al. 2018
    (arXiv 1803.01271), depthwise as TCNCA's budget asks (arXiv 2312.05605).

    Attributes:
      width: D.
      kernel: K, taps of each convolution.
      levels: how many.
      factor: of the dilations, from level to level.
      convs: convolutions in a level, one after another, before its residual connection.
    """

    width: Size | None = None
    kernel: Size = 4
    levels: Few = 4
    factor: Size = 4
    convs: Few = 1

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def span(self) -> int:
        """How many tokens before the current one are seen, if none is left out between."""
        return self.convs * sum(
            reach(self.kernel, self.factor**level) for level in range(self.levels)
        )

    def table(self) -> Table:
        """conv [levels, convs, K, D] and bias [levels, convs, D]."""
        width = known(self.width, "width", self)
        shape, draw = (self.levels, self.convs, self.kernel, width), fan_in(self.kernel)
        return {
            "conv": Param(shape, (None, None, None, "channel"), draw),
            "conv_bias": Param(
                (self.levels, self.convs, width), (None, None, "channel"), draw, decay=False
            ),
        }

    def carry_table(self, batch: int) -> Any:
        """For each convolution the inputs before the next token that it sees, [B, H, D]."""
        width = known(self.width, "width", self)
        return tuple(
            Param(
                (batch, reach(self.kernel, self.factor**level), width),
                ("batch", None, "channel"),
                zeros,
            )
            for level in range(self.levels)
            for _ in range(self.convs)
        )

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
        """Channels are split all through."""
        own = collectives.own_shard(residual.enter(x, axes, "channel"), axes.of("channel"), dim=2)
        y, after = self.channels(params, own, carry, axes, starts)
        return residual.leave_channels(y, axes.of("channel"), axes), after

    def channels(
        self,
        params: Params,
        x: Float[Array, "B T d"],
        carry: Carry | None,
        axes: Axes,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T d"], Carry]:
        """The stack on this device's channels."""
        before, begin = parted(self.carry(x.shape[0], axes) if carry is None else carry)
        tails, begins = iter(before), iter(begin)
        own = None if starts is None else segments(starts, axes.seq)
        after = []
        for level in range(self.levels):
            y = x
            for i in range(self.convs):
                weight, bias = params["conv"][level, i], params["conv_bias"][level, i]
                tail, dilation = next(tails).astype(x.dtype), self.factor**level
                y, tail = segmented_conv(
                    y, weight, bias, tail, axes.seq, dilation, own, next(begins)
                )
                y = jax.nn.silu(y)
                after.append(tail.astype(jnp.float32))
            x = x + y
        return x, tuple(after)


@dataclasses.dataclass(frozen=True)
class TCNCA(Layer):
    """A convolution stack that reaches far, feeding gated attention inside chunks.

    m = silu(TCN(x) + omega * x); z = silu(m W_z + b); q, k are two channel-wise affine maps of z;
    v = silu(x W_v + b); o is their attention in chunks (`gam_jax.ops.chunk_attention`);
    r = silu(m W_r + b); h = silu(m W_m + (o * r) W_h + b); u = sigmoid(m W_u + b);
    the result is u * (h - x), which the residual connection around adds. The scales of q and k
    begin near 1 (MEGA's near 0, for which its long warm-up waits).

    It is MEGA's block (arXiv 2209.10655, eq. 7-15, and its official code) with convolutions in
    place of the moving average, as TCNCA has it (arXiv 2312.05605; its paper's body was not at
    hand: depthwise, one convolution a level, is our reading). MEGA takes x in u * (h - x) from
    before the norm; here it is the layer's input, so that it stands in a block like any mixer.

    Attributes:
      width: D.
      tcn: the convolutions.
      chunk: C, tokens in a chunk.
      keys: Z, width of queries and keys.
      expansion: values are expansion * D wide.
      variant: "full"; "simple" has no gates: (o W_h) with v = m W_v, for recall.
      dropout: rate on the result in training.
    """

    width: Size | None = None
    tcn: TCN = TCN()
    chunk: Size = 128
    keys: Size = 64
    expansion: Size = 2
    variant: str = "full"
    dropout: Rate | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.variant not in VARIANTS:
            raise ValueError(f"TCNCA.variant '{self.variant}' is not one of {', '.join(VARIANTS)}")
        object.__setattr__(self, "tcn", dataclasses.replace(self.tcn, width=self.width))

    def table(self) -> Table:
        """tcn; omega [D]; w_z [D, Z]; affine [2, 2, Z]; w_v, w_r [D, H]; w_h [H, D]; gates."""
        width = known(self.width, "width", self)
        hidden = self.expansion * width
        table: dict[str, Any] = {
            "tcn": self.tcn.table(),
            "omega": Param((width,), ("channel",), normal(1.0)),
            "w_z": Param((width, self.keys), ("channel", None), normal(STD)),
            "b_z": Param((self.keys,), (None,), zeros, decay=False),
            "scale": Param((2, self.keys), (None, None), _near_one, decay=False),
            "shift": Param((2, self.keys), (None, None), zeros, decay=False),
            "distance": Param((self.chunk,), (None,), normal(STD), decay=False),
            "w_v": Param((width, hidden), ("embed", "channel"), normal(STD)),
            "b_v": Param((hidden,), ("channel",), zeros, decay=False),
            "w_h": Param((hidden, width), ("channel", "embed"), normal(STD)),
        }
        if self.variant == "full":
            table["w_r"] = Param((width, hidden), ("embed", "channel"), normal(STD))
            table["b_r"] = Param((hidden,), ("channel",), zeros, decay=False)
            table["w_m"] = Param((width, 2, width), ("embed", None, "channel"), normal(STD))
            table["b_m"] = Param((2, width), (None, "channel"), zeros, decay=False)
        return table

    def carry_table(self, batch: int) -> Any:
        """Those of the convolutions; the last C keys and values; tokens of a document, modulo C."""
        hidden = self.expansion * known(self.width, "width", self)
        shape = batch, self.chunk, self.keys
        keys = Param(shape, ("batch", None, None), zeros, cache=True)
        shape = batch, self.chunk, hidden
        values = Param(shape, ("batch", None, "channel"), zeros, cache=True)
        seen = (keys, values, row_counter(batch))
        return {"tcn": self.tcn.carry_table(batch), "seen": seen}

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
        """Channels and values are split; queries and keys are summed, and whole on every device."""
        begin = {"tcn": None, "seen": (None,)} if carry is None else carry
        seen = None if begin["seen"][0] is None else begin["seen"]
        channels = axes.of("channel")
        x = residual.enter(x, axes, "channel")
        own = collectives.own_shard(x, channels, dim=2)
        mixed, tails = self.tcn.channels(params["tcn"], own, begin["tcn"], axes, starts)
        mixed = jax.nn.silu(mixed + params["omega"] * own)
        z = collectives.psum(linear(_flat(mixed), params["w_z"]), channels)
        z = jax.nn.silu(z + params["b_z"]).reshape(*x.shape[:2], -1)
        whole = mixed
        if channels is not None:  # its gradient is reduce-scattered
            whole = lax.all_gather(mixed, channels, axis=2, tiled=True)

        full = self.variant == "full"
        values = linear(_flat(x if full else whole), params["w_v"], params["b_v"])
        values = (jax.nn.silu(values) if full else values).reshape(*x.shape[:2], -1)
        q, k = (z * params["scale"][i] + params["shift"][i] for i in range(2))
        o, seen = chunk_attention(q, k, values, params["distance"], seen, axes.seq, starts)
        after = {"tcn": tails, "seen": seen}
        if full:
            change = self._gated(params, own, whole, o, channels)
            y = residual.leave_channels(change, channels, axes)
        else:
            parts = linear(_flat(o), params["w_h"]).reshape(*x.shape[:2], -1)
            y = residual.leave_sum(parts, channels, axes)
        return dropout(y, self.dropout or 0.0, key, axes), after

    def _gated(
        self, params: Params, own: Array, whole: Array, o: Array, channels: str | None
    ) -> Array:
        whole = _flat(whole)
        r = jax.nn.silu(linear(whole, params["w_r"], params["b_r"]))
        w_m, b_m = params["w_m"], params["b_m"].reshape(-1)
        given = linear(whole, w_m.reshape(w_m.shape[0], -1), b_m)
        u, given = jnp.split(given, 2, axis=1)
        read = collectives.reduce_scatter(linear(_flat(o) * r, params["w_h"]), channels, dim=1)
        h = jax.nn.silu(given + read)
        return (jax.nn.sigmoid(u) * (h - _flat(own))).reshape(own.shape)


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _near_one(key: Array, shape: tuple[int, ...]) -> Array:
    return ones(key, shape) + normal(STD)(key, shape)
