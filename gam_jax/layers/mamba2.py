"""Mamba-2: heads with one decay each, so that the scan is made of matrix products."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gam_jax.layers.base import WHOLE, Carry, Layer, known, parted
from gam_jax.layers.mamba import log_step_sizes
from gam_jax.ops.conv import segmented_conv
from gam_jax.ops.documents import segments
from gam_jax.ops.linear import by_rows, linear, transposed_flat
from gam_jax.ops.scan import memory_scan
from gam_jax.params import Param, Params, Table, fan_in, ones, zeros
from gam_jax.units import ALL_CHANNELS, WIDTH, Part, Unit, UnitTable
from sharding import collectives, residual
from sharding.axes import Axes
from sharding.bounds import Count, NotNegative, Size, check_bounds

NORMS = ("gate_first", "norm_first", "none")
MAPS = ("w_zx", "w_bc", "w_dt", "b_zx", "b_bc", "b_dt")
"""What tokens go through first."""


def _log_uniform_decay(key: Array, shape: tuple[int, ...]) -> Array:
    """log of U(1, 16), as the official Mamba-2 code begins."""
    return jnp.log(jax.random.uniform(key, shape, jnp.float32, 1.0, 16.0))


@dataclasses.dataclass(frozen=True)
class Scales:
    """Constants on what a Mamba-2 layer is given and on the five parts of its projection.

    Attributes:
      input: on what the layer is given.
      z, x, b, c, dt: on that part of the projection.
    """

    input: float = 1.0
    z: float = 1.0
    x: float = 1.0
    b: float = 1.0
    c: float = 1.0
    dt: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclasses.dataclass(frozen=True)
class Mamba2(Layer):
    """The mixer of Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, sections 7 and 8).

    (z, x, b, c, dt) = u W_in; (x, b, c) = silu(conv(x, b, c)); dt = softplus(dt + dt_bias); for
    each head S_t = exp(-dt_t exp(a_log)) S_{t-1} + b_t (dt_t x_t)^T and y_t = S_t^T c_t + skip x_t;
    y is gated by silu(z) and normed by groups of heads, then W_out.

    This is an associative memory with a decay: b are keys, c queries, dt x values. Heads of one
    group share b and c.

    Attributes:
      width: D.
      inner: E = H P; 0 for 2 D.
      head: P, channels of a head.
      state: N, numbers in the state of a channel.
      groups: G, of heads; it divides their number.
      kernel: K, taps of the convolution.
      norm: "gate_first", norm(y silu(z)), as Mamba-2; "norm_first", norm(y) silu(z); "none",
        y silu(z), as most of Falcon-H1.
      eps: of the norm.
      dt_min, dt_max: bounds of dt; dt_max 0 for none.
      scales: Falcon-H1's constants.
      conv_bias: whether the convolutions have biases.
      in_bias, out_bias: whether W_in and W_out have.
      chunk: tokens in a chunk of the scan.
      method: of the scan, see `gam_jax.ops.scan.memory_scan`.
    """

    width: Size | None = None
    inner: Count = 0
    head: Size = 64
    state: Size = 128
    groups: Size = 1
    kernel: Size = 4
    norm: str = "gate_first"
    eps: NotNegative = 1e-5
    dt_min: NotNegative = 0.0
    dt_max: NotNegative = 0.0
    scales: Scales = Scales()
    conv_bias: bool = True
    in_bias: bool = False
    out_bias: bool = False
    chunk: Size = 64
    method: str = "chunked"

    computed: ClassVar[tuple[str, ...]] = ("method", "chunk")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.norm not in NORMS:
            raise ValueError(f"Mamba2.norm '{self.norm}' is not one of {', '.join(NORMS)}")
        if self.inner or self.width:
            _ = self.heads

    @property
    def heads(self) -> int:
        """H.

        Raises:
          ValueError: the inner width is no multiple of head * groups.
        """
        inner = self.inner or 2 * known(self.width, "width", self)
        if inner % (self.head * self.groups):
            raise ValueError(
                f"Mamba2: {inner} inner channels are not whole heads of {self.head} in "
                f"{self.groups} groups: change inner, head or groups"
            )
        return inner // self.head

    def table(self) -> Table:
        """w_zx [D, 2, H, P], w_bc [D, 2, G, N], w_dt [D, H], w_out [D, H, P]; what heads have.

        Biases are named as the weights: b_zx, b_bc, b_dt and b_out, without their D where it is
        that of the input.
        """
        width, heads = known(self.width, "width", self), self.heads
        shared, per_head = (2, self.groups, self.state), ("heads",)
        taps = fan_in(self.kernel)
        table = {
            "w_zx": Param(
                (width, 2, heads, self.head), ("embed", None, "heads", None), fan_in(width)
            ),
            "w_bc": Param((width, *shared), ("embed", None, None, None), fan_in(width)),
            "w_dt": Param((width, heads), ("embed", "heads"), fan_in(width)),
            "conv_x": Param((self.kernel, heads, self.head), (None, "heads", None), taps),
            "conv_bc": Param((self.kernel, *shared), (None, None, None, None), taps),
            "dt_bias": Param((heads,), per_head, log_step_sizes(), decay=False),
            "a_log": Param((heads,), per_head, _log_uniform_decay, decay=False),
            "skip": Param((heads,), per_head, ones, decay=False),
            "w_out": Param(
                (width, heads, self.head),
                ("embed", "heads", None),
                fan_in(heads * self.head),
                transposed=True,
            ),
        }
        each = (heads, self.head), ("heads", None)
        if self.norm != "none":
            table["norm"] = Param(*each, ones, decay=False)
        all_of = shared, (None, None, None)
        if self.conv_bias:
            table["conv_x_bias"] = Param(*each, taps, decay=False)
            table["conv_bc_bias"] = Param(*all_of, taps, decay=False)
        if self.in_bias:
            begins, both = fan_in(width), ((2, *each[0]), (None, *each[1]))
            for name, place in (("zx", both), ("bc", all_of), ("dt", ((heads,), per_head))):
                table[f"b_{name}"] = Param(*place, begins, decay=False)
        if self.out_bias:
            begins = fan_in(heads * self.head)
            table["b_out"] = Param((width,), ("embed",), begins, decay=False)
        return table

    def unit_table(self) -> UnitTable:
        """heads, of which groups stay equal; a norm's groups see all of theirs."""
        table = self.table()
        places = {"w_zx": 2, "w_dt": 1, "conv_x": 1, "b_zx": 1}
        names = ("dt_bias", "a_log", "skip", "norm", "conv_x_bias", "b_dt")
        places |= dict.fromkeys(names, 0)
        made = tuple(Part(name, dim) for name, dim in places.items() if name in table)
        reason = "" if self.norm == "none" else "its norm sees all heads of a group"
        heads = Unit(made, (Part("w_out", 1),), within=self.groups, equal=reason, unweighed=reason)
        outward = (Part("w_out", 0), *((Part("b_out", 0),) if self.out_bias else ()))
        into = tuple(Part(name, 0) for name in ("w_zx", "w_bc", "w_dt"))
        return {"heads": heads, WIDTH: Unit(outward, into, equal=ALL_CHANNELS)}

    def with_units(self, name: str, size: int) -> Mamba2:
        """With so many heads, or channels of the stream."""
        if name == "heads":
            return dataclasses.replace(self, inner=size * self.head)
        inner = self.heads * self.head
        return dataclasses.replace(super().with_units(name, size), inner=inner)

    def silent(self) -> tuple[str, ...]:
        """w_out, and its bias."""
        return ("w_out", "b_out") if self.out_bias else ("w_out",)

    def carry_table(self, batch: int) -> Any:
        """The K-1 inputs of the convolutions [B, K-1, H P] and [B, K-1, 2 G N]; S [B, H, N, P]."""
        heads, before = self.heads, self.kernel - 1
        shared = 2 * self.groups * self.state
        state = (batch, heads, self.state, self.head)
        return {
            "conv_x": Param(
                (batch, before, heads, self.head), ("batch", None, "heads", None), zeros
            ),
            "conv_bc": Param((batch, before, shared), ("batch", None, None), zeros),
            "state": Param(state, ("batch", "heads", None, None), zeros),
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
        """Heads are split; each device finds b and c of all groups."""
        before, begin = parted(self.carry(x.shape[0], axes) if carry is None else carry)
        maps = {name: p for name, p in params.items() if name in MAPS}
        z, v, bc, dt = residual.enter_map(self._project, maps, x, axes, "heads")
        after: dict[str, Array] = {}
        own = None if starts is None else segments(starts, axes.seq)
        v, after["conv_x"] = _convolve(params, "conv_x", v, before, begin, axes, own)
        bc, tail = _convolve(params, "conv_bc", bc, before, begin, axes, own)
        after["conv_bc"] = collectives.from_last(tail, axes.of("heads"))  # the same on all
        b, c = self._own_groups(bc, axes)
        v = v.reshape(*v.shape[:2], -1, self.head)
        step = jax.nn.softplus(dt.astype(jnp.float32) + params["dt_bias"])
        step = jnp.clip(step, self.dt_min, self.dt_max or None)
        y, after["state"] = memory_scan(
            c,
            b,
            step[..., None] * v,
            log_decay=-step * jnp.exp(params["a_log"].astype(jnp.float32)),
            state=before["state"],
            method=self.method,
            chunk=self.chunk,
            axis=axes.seq,
            starts=starts,
            begin=begin["state"],
            backend=axes.backend,
        )
        y = self._gate(params, y + params["skip"][:, None] * v, z.reshape(v.shape), axes)
        y, outward = y.astype(x.dtype).reshape(*y.shape[:2], -1), by_rows(transposed_flat)
        out = residual.leave_map(outward, params["w_out"], y, axes.of("heads"), axes)
        return out + params["b_out"] if self.out_bias else out, after

    def _project(self, params: Params, x: Array) -> tuple[Array, Array, Array, Array]:
        """z, x [B, T, H P], b and c [B, T, 2 G N], dt [B, T, H]: each times its scale."""
        flat, width, scales = x.reshape(-1, x.shape[-1]), x.shape[-1], self.scales
        if scales.input != 1:
            flat = flat * scales.input
        zx, bc, dt = (
            linear(
                flat,
                params[f"w_{name}"].reshape(width, -1),
                params[f"b_{name}"].reshape(-1) if self.in_bias else None,
            ).reshape(*x.shape[:2], -1)
            for name in ("zx", "bc", "dt")
        )
        z, v = jnp.split(zx, 2, axis=2)
        if scales != Scales(input=scales.input):
            b, c = jnp.split(bc, 2, axis=2)
            bc = jnp.concatenate([scales.b * b, scales.c * c], axis=2)
            z, v, dt = scales.z * z, scales.x * v, scales.dt * dt
        return z, v, bc, dt

    def _own_groups(self, bc: Array, axes: Axes) -> tuple[Array, Array]:
        """b and c [B, T, g, N] of the groups that this device's heads belong to."""
        bc = bc.reshape(*bc.shape[:2], 2, self.groups, self.state)
        parts = collectives.axis_size(axes.of("heads"))
        # A group whose heads lie on several devices is taken as that many equal ones.
        bc = jnp.repeat(bc, math.lcm(self.groups, parts) // self.groups, axis=3)
        own = collectives.own_shard(bc, axes.of("heads"), dim=3)
        return own[:, :, 0], own[:, :, 1]

    def _gate(self, params: Params, y: Array, z: Array, axes: Axes) -> Array:
        """y [B, T, h, P] gated by silu(z) and normed by groups of heads, in float32."""
        y, gate = y.astype(jnp.float32), jax.nn.silu(z.astype(jnp.float32))
        if self.norm != "norm_first":
            y = y * gate
        if self.norm != "none":
            y = y * self._inverse_size(y, axes)[..., None] * params["norm"]
        return y * gate if self.norm == "norm_first" else y

    def _inverse_size(self, y: Array, axes: Axes) -> Array:
        """1 / sqrt(mean of y^2 in a head's group + eps), for each of this device's heads."""
        squares = jnp.mean(jnp.square(y), axis=-1)
        heads, split = axes.of("heads"), self.groups % collectives.axis_size(axes.of("heads"))
        if split:  # groups lie on several devices: a number a head and token is gathered
            squares = collectives.all_gather(squares, heads, dim=2)
        size = self.heads // self.groups
        means = jnp.mean(squares.reshape(*squares.shape[:2], -1, size), axis=-1)
        inverse = jnp.repeat(lax.rsqrt(means + self.eps), size, axis=2)
        return collectives.own_shard(inverse, heads, dim=2) if split else inverse


def _convolve(
    params: Params,
    name: str,
    x: Array,
    carry: Carry,
    start: Any,
    axes: Axes,
    own: Int[Array, "B T"] | None,
) -> tuple[Array, Array]:
    """silu(conv(x)) and the tail in the carry's shape and dtype."""
    weight, before = params[name], carry[name]
    filters, bias = weight.reshape(weight.shape[0], -1), params.get(f"{name}_bias")
    bias = jnp.zeros((), x.dtype) if bias is None else bias.reshape(-1)
    state, begin = jax.tree.map(
        lambda part: part.astype(x.dtype).reshape(*part.shape[:2], x.shape[2]),
        (before, start[name]),
    )
    y, tail = segmented_conv(x, filters, bias, state, axes.seq, segments=own, begin=begin)
    return jax.nn.silu(y), tail.astype(before.dtype).reshape(before.shape)
