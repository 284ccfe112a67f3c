"""A delta-rule memory beside two convolutions and the value itself, fused by gates."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, known, parted
from gam_jax.ops.activation import gelu
from gam_jax.ops.conv import segmented_conv
from gam_jax.ops.documents import segments
from gam_jax.ops.linear import by_rows, linear, transposed_flat, with_linear_flat
from gam_jax.ops.norm import rms_norm, unit_norm
from gam_jax.ops.scan import memory_scan
from gam_jax.params import Initializer, Param, Params, Table, fan_in, ones, zeros
from sharding import collectives, residual
from sharding.axes import Axes
from sharding.bounds import Count, Rate, Size, check_bounds

PATHS = 4
"""Short convolution, long convolution, memory, value."""

STARTS = (-1.0, -1.0, 1.0, 3.0)
"""Biases of the gates' logits."""

LEAST_DECAY = 0.6
"""Of the state over STRETCH tokens."""

STRETCH = 32


def _last_tap(key: Array, shape: tuple[int, ...]) -> Array:
    """Filters [K, ...] that hand on their input, with noise of 0.01."""
    return (0.01 * jax.random.normal(key, shape, jnp.float32)).at[-1].add(1.0)


def _value(value: float) -> Initializer:
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


def _gate_starts(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(jnp.asarray(STARTS, jnp.float32), shape)


@dataclasses.dataclass(frozen=True)
class FusedDelta(Layer):
    """FusionGatedFIRNet of ASI-Arch (arXiv 2507.18074), one of its multi-path DeltaNets.

    v, q, k, beta as DeltaNet has them. Four paths of a value: FIR_short(v), FIR_long(v), the
    delta rule's read, and v. Their gates are f + (1 - f) sigmoid(logits / exp(temperature)), the
    logits a two-layer network of the token and of the mean size of each head's paths; the gated
    sum is RMS-normalised head by head, then W_out.

    The state decays by 0.6 + 0.4 sigmoid(p) of each head every 32 tokens. The official code does
    so once for each chunk of its scan, which no recurrence over tokens equals; here each token
    decays by the 32nd root.

    Attributes:
      width: D.
      heads: H, of K = N = D / H channels, split over `tensor`.
      key_width, value_width: K and N where they are not D / H.
      kernel: taps of the convolution on queries, keys and values.
      short, long: taps of the paths' convolutions.
      chunk, method: of the scan, see `gam_jax.ops.scan.memory_scan`.
      floor: f, the least of every gate, so that no path dies. With 0, and gates that are open to
        the delta rule alone, it is DeltaNet.
    """

    width: Size | None = None
    heads: Size = 4
    key_width: Count = 0
    value_width: Count = 0
    kernel: Size = 4
    short: Size = 3
    long: Size = 63
    chunk: Size = 64
    floor: Rate = 0.02
    method: str = "chunked"

    computed: ClassVar[tuple[str, ...]] = ("method", "chunk")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.width is not None and not (self.keys and self.values):
            raise ValueError(f"FusedDelta.heads={self.heads} are too many for {self.width}")

    @property
    def keys(self) -> int:
        """K."""
        return self.key_width or known(self.width, "width", self) // self.heads

    @property
    def values(self) -> int:
        """N."""
        return self.value_width or known(self.width, "width", self) // self.heads

    def table(self) -> Table:
        """w_qkv [D, H, 2K + N], conv, FIRs [taps, H, N], the gates' network, w_out [D, H, N]."""
        width, heads, values = known(self.width, "width", self), self.heads, self.values
        mixed, hidden = 2 * self.keys + values, 2 * width
        by_head, taps = ("embed", "heads", None), (None, "heads", None)
        sizes, head = (heads, PATHS, hidden), ("heads",)
        first = fan_in(width + heads * PATHS)
        return {
            "w_qkv": Param((width, heads, mixed), by_head, fan_in(width)),
            "conv": Param((self.kernel, heads, mixed), taps, fan_in(self.kernel)),
            "w_beta": Param((width, heads), ("embed", "heads"), fan_in(width)),
            "decay": Param((heads,), head, _value(6.0), decay=False),
            "short": Param((self.short, heads, values), taps, _last_tap),
            "long": Param((self.long, heads, values), taps, _last_tap),
            "gate_in": Param((width, hidden), ("embed", "ffn"), first),
            "gate_sizes": Param(sizes, (None, None, "ffn"), first),
            "gate_in_bias": Param((hidden,), ("ffn",), first, decay=False),
            "gate_out": Param((hidden, heads, PATHS), ("ffn", None, None), fan_in(hidden)),
            "gate_bias": Param((heads, PATHS), ("heads", None), _gate_starts, decay=False),
            "temperature": Param((heads,), head, zeros, decay=False),
            "norm": Param((values,), (None,), ones, decay=False),
            "w_out": Param(
                (width, heads, values), by_head, fan_in(heads * values), transposed=True
            ),
        }

    def carry_table(self, batch: int) -> Any:
        """state [B, H, K, N], and what each convolution has before the next token."""
        mixed = 2 * self.keys + self.values
        state = (batch, self.heads, self.keys, self.values)
        table = {"state": Param(state, ("batch", "heads", None, None), zeros)}
        for name, taps, channels in (
            ("conv", self.kernel, mixed),
            ("short", self.short, self.values),
            ("long", self.long, self.values),
        ):
            shape = (batch, taps - 1, self.heads, channels)
            table[name] = Param(shape, ("batch", None, "heads", None), zeros)
        return table

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
        """Heads are split inside, hidden units in the gates' network; sums on the way out."""
        before, anew = parted(self.carry(x.shape[0], axes) if carry is None else carry)
        after: dict[str, Array] = {}
        w_qkv, inward = params["w_qkv"], by_rows(with_linear_flat)
        x, mixed = residual.enter_map(inward, w_qkv, x, axes, "heads", "ffn")
        flat = x.reshape(-1, x.shape[-1])
        own = None if starts is None else segments(starts, axes.seq)

        def convolved(name: str, values: Array) -> Array:  # [B, T, H, C]
            taps, tail = params[name], before[name]
            channels = math.prod(taps.shape[1:])
            state, begin = jax.tree.map(
                lambda part: part.astype(x.dtype).reshape(*part.shape[:2], channels),
                (tail, anew[name]),
            )
            rows, bias = values.reshape(*values.shape[:2], -1), jnp.zeros((), x.dtype)
            filters = taps.reshape(taps.shape[0], -1)
            y, last = segmented_conv(
                rows, filters, bias, state, axes.seq, segments=own, begin=begin
            )
            after[name] = last.astype(tail.dtype).reshape(tail.shape)
            return y.reshape(values.shape)

        mixed = jax.nn.silu(convolved("conv", mixed.reshape(*x.shape[:2], *w_qkv.shape[1:])))
        q, k, v = jnp.split(mixed, (self.keys, 2 * self.keys), axis=3)
        beta = jax.nn.sigmoid(linear(flat, params["w_beta"]).astype(jnp.float32))
        beta = beta.reshape(v.shape[:3])
        kept = jax.nn.sigmoid(params["decay"].astype(jnp.float32))
        log_decay = jnp.log(LEAST_DECAY + (1 - LEAST_DECAY) * kept) / STRETCH
        read, after["state"] = memory_scan(
            unit_norm(q) * self.keys**-0.5,
            unit_norm(k),
            v,
            log_decay=jnp.broadcast_to(log_decay, beta.shape),
            beta=beta,
            rule="delta",
            state=before["state"],
            method=self.method,
            chunk=self.chunk,
            axis=axes.seq,
            starts=starts,
            begin=anew["state"],
            backend=axes.backend,
        )
        paths = jnp.stack([convolved("short", v), convolved("long", v), read, v], axis=3)
        gates = self._gates(params, flat, paths, axes)
        fused = jnp.sum(gates[..., None] * paths, axis=3)
        y = rms_norm(fused, params["norm"]).reshape(*x.shape[:2], -1)
        outward, w_out = by_rows(transposed_flat), params["w_out"]
        return residual.leave_map(outward, w_out, y, axes.of("heads"), axes), after

    def _gates(self, params: Params, flat: Array, paths: Array, axes: Axes) -> Array:
        """[B, T, H, 4] of this device's heads: the network sees the sizes of all."""
        heads, hidden = axes.of("heads"), axes.of("ffn")
        sizes = jnp.mean(jnp.abs(paths), axis=-1).reshape(flat.shape[0], -1)
        sizes = collectives.all_gather(sizes, heads, dim=1)
        inner, outer = params["gate_sizes"], params["gate_out"]
        units = linear(flat, params["gate_in"], params["gate_in_bias"])
        units = gelu(units + linear(sizes, inner.reshape(-1, inner.shape[-1])))
        logits = linear(units, outer.reshape(outer.shape[0], -1))
        if heads == hidden:
            logits = collectives.reduce_scatter(logits, heads, dim=1)
        else:
            logits = collectives.own_shard(collectives.psum(logits, hidden), heads, dim=1)
        logits = logits.reshape(paths.shape[:-1]) + params["gate_bias"]
        warm = logits / jnp.exp(params["temperature"])[:, None]
        return self.floor + (1 - self.floor) * jax.nn.sigmoid(warm)
