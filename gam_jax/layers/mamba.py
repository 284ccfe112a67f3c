"""Mamba: a gated mixer around the selective scan."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, known, parted
from gam_jax.ops.conv import causal_conv
from gam_jax.ops.linear import by_rows, linear, linear_flat, transposed_flat
from gam_jax.ops.norm import rms_norm
from gam_jax.ops.selective import selective_scan
from gam_jax.params import Initializer, Param, Params, Table, fan_in, ones, uniform, zeros
from sharding import collectives, residual
from sharding.axes import Axes
from sharding.bounds import Count, NotNegative, Size, check_bounds


def log_step_sizes(low: float = 1e-3, high: float = 0.1, floor: float = 1e-4) -> Initializer:
    """Biases whose softplus is log-uniform in [low, high], as the official Mamba code begins."""

    def draw(key: Array, shape: tuple[int, ...]) -> Array:
        exponent = jax.random.uniform(key, shape, jnp.float32, math.log(low), math.log(high))
        step = jnp.maximum(jnp.exp(exponent), floor)
        return step + jnp.log(-jnp.expm1(-step))

    return draw


def log_of_order(key: Array, shape: tuple[int, ...]) -> Array:
    """log n for the n-th number of a state, n = 1..N, in each channel: S4D-Real."""
    order = jnp.arange(1, shape[-2] + 1, dtype=jnp.float32)
    return jnp.broadcast_to(jnp.log(order)[:, None], shape)


@dataclasses.dataclass(frozen=True)
class Mamba(Layer):
    """The mixer of Mamba (Gu and Dao 2023, arXiv 2312.00752, section 3.4 and figure 3).

    (u, z) = x W_in; u = silu(conv(u)); (r, b, c) = u W_x; dt = softplus(r W_dt + bias);
    y = (selective_scan(u, dt, -exp(a_log), b, c) + skip * u) * silu(z), then W_out.

    Memory and time are linear in tokens; each of the E inner channels carries N numbers. Starts
    as the official code does, but for its division of W_out by the square root of the depth.

    Attributes:
      width: D.
      expansion: E / D.
      state: N, numbers in the state of a channel.
      kernel: K, taps of the convolution.
      rank: R, of the map from a token to its step sizes; 0 for D / 16, rounded up.
      conv_bias: whether the convolution has a bias.
      in_bias, out_bias: whether W_in and W_out have.
      normed: whether r, b and c are normed, each by its own RMSNorm, before they are used (Jamba,
        arXiv 2403.19887, section 3).
      eps: of these norms.
      chunk, method: of the scan, see `gam_jax.ops.selective.selective_scan`.
    """

    width: Size | None = None
    expansion: Size = 2
    state: Size = 16
    kernel: Size = 4
    rank: Count = 0
    conv_bias: bool = True
    in_bias: bool = False
    out_bias: bool = False
    normed: bool = False
    eps: NotNegative = 1e-6
    chunk: Size = 8
    method: str = "chunked"

    computed: ClassVar[tuple[str, ...]] = ("method", "chunk")

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def steps(self) -> int:
        """R."""
        return self.rank or math.ceil(known(self.width, "width", self) / 16)

    @property
    def inner(self) -> int:
        """E."""
        return self.expansion * known(self.width, "width", self)

    def table(self) -> Table:
        """w_in [D, 2, E], conv [K, E], w_x [E, R + 2N], w_dt [R, E], a_log [N, E], w_out [D, E].

        Biases: b_in [2, E], conv_bias [E], b_out [D]. Norms: r_norm [R], b_norm and c_norm [N].
        """
        width, inner, rank = known(self.width, "width", self), self.inner, self.steps
        small = rank + 2 * self.state
        channel = ("channel",)
        table = {
            "w_in": Param((width, 2, inner), ("embed", None, "channel"), fan_in(width)),
            "conv": Param((self.kernel, inner), (None, "channel"), fan_in(self.kernel)),
            "w_x": Param((inner, small), ("channel", None), fan_in(inner)),
            "w_dt": Param((rank, inner), ("latent", "channel"), uniform(rank**-0.5)),
            "dt_bias": Param((inner,), channel, log_step_sizes(), decay=False),
            "a_log": Param((self.state, inner), (None, "channel"), log_of_order, decay=False),
            "skip": Param((inner,), channel, ones, decay=False),
            "w_out": Param((width, inner), ("embed", "channel"), fan_in(inner), transposed=True),
        }
        biases = {
            "conv_bias": (self.conv_bias, Param((inner,), channel, fan_in(self.kernel))),
            "b_in": (self.in_bias, Param((2, inner), (None, "channel"), fan_in(width))),
            "b_out": (self.out_bias, Param((width,), ("embed",), fan_in(inner))),
        }
        vectors = {name: param for name, (there, param) in biases.items() if there}
        if self.normed:
            sizes = {"r_norm": rank, "b_norm": self.state, "c_norm": self.state}
            vectors |= {name: Param((size,), (None,), ones) for name, size in sizes.items()}
        return table | {n: dataclasses.replace(p, decay=False) for n, p in vectors.items()}

    def carry_table(self, batch: int) -> Any:
        """conv, the K-1 inputs before the next token [B, K-1, E], and the state [B, N, E]."""
        axes = ("batch", None, "channel")
        return {
            "conv": Param((batch, self.kernel - 1, self.inner), axes, zeros),
            "state": Param((batch, self.state, self.inner), axes, zeros),
        }

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
        """Inner channels are split; what they find of steps, b and c is summed."""
        before, begin = parted(self.carry(x.shape[0], axes) if carry is None else carry)
        channels = axes.of("channel")
        both = residual.enter_map(by_rows(linear_flat), params["w_in"], x, axes, "channel")
        both = both + params["b_in"].reshape(-1) if self.in_bias else both
        batch, tokens, _ = both.shape
        u, z = jnp.split(both, 2, axis=2)
        z = z.reshape(batch * tokens, -1)
        u, tail = causal_conv(
            u,
            params["conv"],
            params.get("conv_bias"),
            state=before["conv"],
            axis=axes.seq,
            starts=starts,
            begin=begin["conv"],
        )
        u = jax.nn.silu(u)
        flat = u.reshape(z.shape)
        small = collectives.psum(linear(flat, params["w_x"]), channels)
        r, b, c = jnp.split(small, (self.steps, self.steps + self.state), axis=1)
        if self.normed:
            r, b, c = (
                rms_norm(part, params[f"{name}_norm"], self.eps)
                for name, part in (("r", r), ("b", b), ("c", c))
            )
        dt = linear(r, params["w_dt"]).astype(jnp.float32) + params["dt_bias"]
        y, state = selective_scan(
            u,
            jax.nn.softplus(dt).reshape(u.shape),
            -jnp.exp(params["a_log"].astype(jnp.float32)),
            b.reshape(batch, tokens, -1),
            c.reshape(batch, tokens, -1),
            state=before["state"],
            method=self.method,
            chunk=self.chunk,
            axis=axes.seq,
            starts=starts,
            begin=begin["state"],
            backend=axes.backend,
        )
        gated = (y.reshape(flat.shape) + params["skip"] * flat) * jax.nn.silu(z)
        gated, outward = gated.reshape(batch, tokens, -1), by_rows(transposed_flat)
        out = residual.leave_map(outward, params["w_out"], gated, channels, axes)
        out = out + params["b_out"] if self.out_bias else out
        return out, {"conv": tail, "state": state}
