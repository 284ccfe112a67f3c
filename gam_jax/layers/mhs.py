"""Multi-head scanning: an image read along several routes at once."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gam_jax.layers.base import WHOLE, Layer, known
from gam_jax.layers.mamba import log_of_order, log_step_sizes
from gam_jax.ops.linear import linear
from gam_jax.ops.norm import layer_norm
from gam_jax.ops.scan_routes import PATTERNS, both_ways
from gam_jax.ops.selective import selective_scan
from gam_jax.params import Param, Params, Table, fan_in, ones, zeros
from sharding import collectives, residual
from sharding.axes import Axes
from sharding.bounds import Count, Size, check_bounds

ROUTES = 4
TAPS = 9
"""Of the 3 x 3 convolution."""


@dataclasses.dataclass(frozen=True)
class MHS(Layer):
    """The mixer of MHS-VM (Ji 2024, arXiv 2406.05992, and its official code) on images.

    (u, z) = x W_in; u = silu(conv_3x3(u)); each head projects u to a subspace of its own and runs
    a selective scan along the two routes of its pattern, both ways, four in all, each with its
    own parameters; a gate fuses the four; y = norm(norm(heads) W_out) * silu(z).

    The sequence is an image, row after row, read whole: every pixel sees every other, so there is
    no carry. Where tokens are split, images are gathered on every device, which reads them whole
    and keeps its own tokens: a permutation would have to send as much.

    Attributes:
      width: D.
      rows: of the image; columns are what the tokens say.
      patterns: a head for each letter, see `gam_jax.ops.scan_routes`.
      head: width S of a head's subspace; 0 for D / heads.
      state: N, numbers in the state of a channel.
      threshold: t of the gate.
    """

    width: Size | None = None
    rows: Size = 8
    patterns: str = "CXSZ"
    head: Count = 0
    state: Size = 16
    threshold: float = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)
        wrong = set(self.patterns) - set(PATTERNS)
        if wrong or not self.patterns:
            raise ValueError(
                f"MHS.patterns '{self.patterns}': give letters of {', '.join(PATTERNS)}"
            )
        if self.width is not None and not self.head and self.width % len(self.patterns):
            raise ValueError(
                f"MHS.width {self.width} is not divisible by {len(self.patterns)} heads: set head"
            )

    @property
    def causal(self) -> bool:
        """False: every pixel sees all others, later ones too."""
        return False

    @property
    def subspace(self) -> int:
        """S."""
        return self.head or known(self.width, "width", self) // len(self.patterns)

    @property
    def documents(self) -> bool:
        """False: it reads whole rows, as one image."""
        return False

    def table(self) -> Table:
        """w_in [D, 2, D], conv [9, D], w_head [D, H, S], for each head and route a scan, w_out."""
        width, heads, own = known(self.width, "width", self), len(self.patterns), self.subspace
        rank, lead = math.ceil(own / 16), (heads, ROUTES)
        small, plain = rank + 2 * self.state, (None, None)
        channel = ("channel",)
        return {
            "w_in": Param((width, 2, width), ("embed", None, "channel"), fan_in(width)),
            "conv": Param((TAPS, width), (None, "channel"), fan_in(TAPS)),
            "conv_bias": Param((width,), channel, fan_in(TAPS), decay=False),
            "w_head": Param((width, heads, own), ("embed", None, "channel"), fan_in(width)),
            "w_x": Param((*lead, own, small), (*plain, "channel", None), fan_in(own)),
            "w_dt": Param((*lead, rank, own), (*plain, None, "channel"), fan_in(rank)),
            "dt_bias": Param((*lead, own), (*plain, "channel"), log_step_sizes(), decay=False),
            "a_log": Param(
                (*lead, self.state, own), (*plain, None, "channel"), log_of_order, decay=False
            ),
            "skip": Param((*lead, own), (*plain, "channel"), ones, decay=False),
            "head_scale": Param((heads, own), (None, "channel"), ones, decay=False),
            "head_bias": Param((heads, own), (None, "channel"), zeros, decay=False),
            "w_out": Param((heads, own, width), (None, "channel", "embed"), fan_in(heads * own)),
            "scale": Param((width,), channel, ones, decay=False),
            "bias": Param((width,), channel, zeros, decay=False),
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
        """Channels, and those of each head, are split.

        Raises:
          ValueError: tokens that do not fill the rows.
        """
        channels, width = axes.of("channel"), x.shape[2]
        x = residual.enter(x, axes, "channel")
        if axes.seq is not None:  # its gradient is reduce-scattered
            x = lax.all_gather(x, axes.seq, axis=1, tiled=True)
        batch, tokens, _ = x.shape
        if tokens % self.rows:
            raise ValueError(f"{tokens} tokens do not fill the {self.rows} rows of MHS.rows")
        given = linear(x.reshape(-1, width), params["w_in"].reshape(width, -1))
        u, z = jnp.split(given, 2, axis=1)
        image = u.reshape(batch, self.rows, tokens // self.rows, -1)
        u = jax.nn.silu(conv_3x3(image, params["conv"], params["conv_bias"])).reshape(u.shape)
        if channels is not None:
            u = lax.all_gather(u, channels, axis=1, tiled=True)
        w_head = params["w_head"]
        heads = linear(u, w_head.reshape(width, -1)).reshape(batch, tokens, *w_head.shape[1:])
        heads = self._scan(params, heads, channels, axes.backend)
        scale, bias = params["head_scale"].reshape(-1), params["head_bias"].reshape(-1)
        flat = layer_norm(heads.reshape(batch * tokens, -1), scale, bias, axis=channels)
        parts = linear(flat, params["w_out"].reshape(-1, width))
        y = collectives.reduce_scatter(parts, channels, dim=1)
        y = layer_norm(y, params["scale"], params["bias"], axis=channels) * jax.nn.silu(z)
        y = collectives.own_shard(y.reshape(batch, tokens, -1), axes.seq, dim=1)
        return residual.leave_channels(y, channels, axes), ()

    def _scan(
        self,
        params: Params,
        x: Float[Array, "B T H S"],
        channels: str | None,
        backend: str | None,
    ) -> Float[Array, "B T H S"]:
        """Each head along its four routes and back in the image's order, fused."""
        tokens = x.shape[1]
        tables = np.stack([both_ways(p, self.rows, tokens // self.rows) for p in self.patterns])
        back = np.argsort(tables, axis=-1)
        along = jax.vmap(jax.vmap(lambda x, order: x[:, order], (None, 0)), (2, 0))
        seen = along(x, jnp.asarray(tables))  # [H, 4, B, T, S]
        small = jnp.einsum("hrbts,hrsk->hrbtk", seen, params["w_x"])
        small = collectives.psum(small, channels)
        rank = params["w_dt"].shape[2]
        steps = jnp.einsum("hrbtk,hrks->hrbts", small[..., :rank], params["w_dt"])
        dt = jax.nn.softplus(steps + params["dt_bias"][:, :, None, None])
        b, c = jnp.split(small[..., rank:], 2, axis=-1)
        scan = jax.vmap(jax.vmap(lambda *a: selective_scan(*a, backend=backend)[0]))
        y = scan(seen, dt, -jnp.exp(params["a_log"].astype(jnp.float32)), b, c)
        y = y + params["skip"][:, :, None, None] * seen
        y = jax.vmap(jax.vmap(lambda y, order: y[:, order]))(y, jnp.asarray(back))
        return jnp.moveaxis(fuse(y, self.threshold, axis=1), 0, 2)


def fuse(y: Float[Array, ...], threshold: float, axis: int) -> Float[Array, ...]:
    """sum_r y_r relu(v - threshold) over routes r, v = std(y) / (mean(y - min y) + 1e-5).

    The more the routes disagree on an element, the more of it is let through; where all agree
    it is zero, and so is its gradient by v. Source: the scan route attention of MHS-VM
    (arXiv 2406.05992) and its official code. Float32 inside.
    """
    wide = y.astype(jnp.float32)
    count = y.shape[axis]
    centred = wide - jnp.mean(wide, axis, keepdims=True)
    variance = jnp.sum(jnp.square(centred), axis) / (count - 1)
    some = variance > 0
    std = jnp.where(some, jnp.sqrt(jnp.where(some, variance, 1.0)), 0.0)
    above = jnp.mean(wide - jnp.min(wide, axis, keepdims=True), axis)
    gate = jax.nn.relu(std / (above + 1e-5) - threshold)
    return (jnp.sum(wide, axis) * gate).astype(y.dtype)


def conv_3x3(
    x: Float[Array, "B R C D"], weight: Float[Array, "9 D"], bias: Float[Array, D]
) -> Float[Array, "B R C D"]:
    """Depthwise, centred, zeros around, as nine shifted multiply-adds; taps row by row."""
    rows, columns = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = (padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3))
    return bias + sum(w * part for w, part in zip(weight, shifted, strict=True))
