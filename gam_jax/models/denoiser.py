"""A denoiser of long videos in chunks, which agree by a few tokens that all of them read.

Source: video interface networks (VINs, arXiv 2503.17539), at the size of numbers for pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE, known
from gam_jax.layers.mlp import MLP
from gam_jax.layers.norm import LayerNorm
from gam_jax.layers.sources import SourceAttention
from gam_jax.models.base import BATCH, TOKEN, Batch, Measures, Model, sizes_of
from gam_jax.ops import denoising
from gam_jax.ops.convolution import convolve
from gam_jax.params import Param, Params, Table, fan_in, normal, zeros
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Count, Size
from sharding.errors import UserError
from sharding.layout import Layout

INTERFACE, NONE, FULL = "interface", "none", "full"
EARLY, LATE = "early", "late"
PART = 0.4
"""The time above which fusion is early; the source's 20 steps of 50 from the end."""
TAPS = 5
"""Frames that make a token: one with its neighbours, within the window."""


@dataclasses.dataclass(frozen=True)
class VideoDenoiser(Model):
    """Velocities of the noised frames [B, N, C], chunk by chunk, all chunks at once.

    A chunk is F frames behind the last K of the chunk before, whose gradient is stopped. A token is
    a frame with its neighbours, by a convolution of 5 taps. A chunk's tokens attend to one another
    and to G interface tokens Z. These ask the key frames, every S-th one of the whole noised video,
    and then one another. So chunks share nothing but Z.

    With `seq` over devices each has its own chunks: K frames come from the left neighbour, and Z
    is joined by sums of G D numbers, once a call and not once a layer.

    Attributes:
      reads: "interface"; "none", chunks without Z; "full", every frame attends to every other.
      width: D.
      depth: blocks of attention and feed-forward.
      heads: of each attention.
      chunk: F.
      context: K, at most F.
      tokens: G.
      every: S, frames from a key frame to the next; it divides F.
      processor: blocks over Z.
      frames: N; the data's where it is None.
      channels: C; likewise.
    """

    reads: str = INTERFACE
    width: Size = 32
    depth: Size = 2
    heads: Size = 4
    chunk: Size = 16
    context: Count = 8
    tokens: Size = 8
    every: Size = 4
    processor: Size = 1
    frames: Size | None = None
    channels: Size | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reads not in (INTERFACE, NONE, FULL):
            raise UserError(f"model.reads='{self.reads}' is not one of {INTERFACE}, {NONE}, {FULL}")
        if self.context > self.chunk or self.chunk % self.every or self.width % self.heads:
            raise UserError(
                f"VideoDenoiser: chunk {self.chunk} wants at most as many frames of context "
                f"({self.context}) and key frames that divide it (every {self.every}); heads "
                f"{self.heads} divide the width {self.width}"
            )
        if self.frames is not None and self.frames % self.chunk:
            raise UserError(f"model.chunk={self.chunk} does not divide {self.frames} frames")

    @property
    def window(self) -> int:
        """Frames that a chunk sees, K + F; all of them where it reads the full video."""
        whole = self.reads == FULL
        return known(self.frames, "frames", self) if whole else self.context + self.chunk

    def fitted(self, data: Dataset) -> VideoDenoiser:
        """With the sizes of the data.

        Raises:
          UserError: the data has other sizes than the model.
        """
        return dataclasses.replace(self, **sizes_of(self, data, ("frames", "channels")))

    def check_mesh(self, layout: Layout) -> None:
        """Refuses what `Model` does, and devices along `seq` that chunks do not divide over.

        Raises:
          UserError: such a mesh.
        """
        super().check_mesh(layout)
        parts, frames = layout.mesh.shape.get("seq", 1), self.frames
        if frames is not None and frames // self.chunk % parts:
            raise UserError(
                f"mesh axis seq={parts}: {frames // self.chunk} chunks of {self.chunk} frames do "
                f"not divide over it"
            )

    def table(self) -> Table:
        """frame, time, place; interface; block_0 ...; norm, head."""
        width, channels = self.width, known(self.channels, "channels", self)
        found: dict[str, Any] = {
            "frame": _affine(channels + 1, width, TAPS),
            "time": Param((2 * denoising.WAVES, width), (None, None), fan_in(2 * denoising.WAVES)),
            "place": Param((self.window, width), (None, None), normal(0.2), decay=False),
        }
        if self.reads == INTERFACE:
            start = Param((self.tokens, width), (None, None), normal(1.0), decay=False)
            own = {f"block_{n}": self._block(1).table() for n in range(self.processor)}
            key = _affine(channels + 1, width)
            found["interface"] = {"start": start, "key": key, "read": self._reader.table(), **own}
        for number in range(self.depth):
            found[f"block_{number}"] = self._block(1 + (self.reads == INTERFACE)).table()
        head = Param((width, channels), (None, None), zeros)
        return {**found, "norm": LayerNorm(width).table(), "head": head}

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """frames and noise [rows, N, C], time and weights [rows]."""
        spread = (BATCH, TOKEN, None)
        return {"frames": spread, "noise": spread, "time": (BATCH,), "weights": (BATCH,)}

    def __call__(
        self, params: Params, x: Float[Array, "B N C"], time: Float[Array, B], axes: Axes = WHOLE
    ) -> Float[Array, "B M W C"]:
        """Velocities of the frames of each window, the K of the chunk before among them.

        Args:
          params: see `table`.
          x: this device's noised frames.
          time: 0 to 1.
          axes: mesh axes.
        """
        whole = axes.seq if self.reads == FULL else None
        windows = collectives.all_gather(self._windows(x, axes), whole, 2)
        rows, chunks, *inner = windows.shape
        h = _embedded(params["frame"], windows.reshape(-1, *inner)) + params["place"]
        h = collectives.own_shard(h, whole, 1)
        frames = h.shape[1]
        h += jnp.repeat(denoising.waves(time) @ params["time"], chunks, 0)[:, None]
        sources: list[Array] = []
        if self.reads == INTERFACE:
            z = self._interface(params, x, time, axes)
            sources = [jnp.repeat(z, chunks, 0)]
        for number in range(self.depth):
            block = self._block(1 + len(sources))
            h = block(params[f"block_{number}"], h, sources, axes, whole)
        h, _ = LayerNorm(self.width)(params["norm"], h)
        return (h @ params["head"]).reshape(rows, chunks, frames, -1)

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], float, Measures]:
        """The weighted sum of mean squared errors of velocities over all windows' frames.

        `own` is that of each chunk's own frames, in which every frame counts once.
        """
        time, weights = batch["time"], batch["weights"]
        alpha, sigma = (level[:, None, None] for level in denoising.levels(time))
        levels = alpha, sigma
        x = denoising.noised(batch["frames"], batch["noise"], *levels)
        wanted = denoising.target("velocity", batch["frames"], batch["noise"], *levels)
        own = self._windows(wanted, axes)
        off = jnp.mean(jnp.square(self(params, x, time, axes) - own[..., :-1]), -1)
        there = own[..., -1]
        frames = known(self.frames, "frames", self)
        context = 0 if self.reads == FULL else self.context
        count = frames + (frames // self.chunk - 1) * context
        told = jnp.sum(off[:, :, context:], (1, 2)) / frames
        losses = jnp.sum(off * there, (1, 2)) / count
        measures = {"own": (jnp.sum(weights * told), jnp.sum(weights))}
        return jnp.sum(weights * losses), 0.0, measures

    def joined(self, windows: Float[Array, "B M W C"], fuse: bool) -> Float[Array, "B N C"]:
        """Frames of the chunks in a row.

        Args:
          windows: velocities of each chunk's window.
          fuse: whether the last K frames of a chunk go over evenly to what the next one says of
            them: (1 - w) own + w next, with w = 0 at the first of them and 1 at the last.
        """
        rows, context = len(windows), 0 if self.reads == FULL else self.context
        own = windows[:, :, context:]
        if fuse and context:
            after = windows[:, 1:, :context]
            w = jnp.linspace(0, 1, context)[:, None]
            tail = own[:, :-1, -context:]
            own = own.at[:, :-1, -context:].set(tail + w * (after - tail))
        return own.reshape(rows, -1, own.shape[-1])

    def draw(
        self, params: Params, key: Array, rows: int, steps: int = 32, fuse: str = ""
    ) -> Float[Array, "B N C"]:
        """Videos from noise by DDIM, on one device.

        Args:
          params: see `table`.
          key: random key.
          rows: B.
          steps: of the sampler.
          fuse: "early", at times above 0.4; "late", below; "" for never.

        Raises:
          UserError: another word, or fusion where chunks have no context.
        """
        if fuse not in ("", EARLY, LATE):
            raise UserError(f"fuse='{fuse}' is not one of {EARLY}, {LATE}, or empty for never")
        if fuse and (self.reads == FULL or not self.context):
            raise UserError(
                f"fuse='{fuse}': chunks share no frames where model.reads={self.reads} and "
                f"model.context={self.context}: leave it empty"
            )
        shape = rows, known(self.frames, "frames", self), known(self.channels, "channels", self)

        def predict(x: Array, t: Array) -> Array:
            windows = self(params, x, jnp.full(rows, t))
            plain = self.joined(windows, fuse=False)
            if not fuse:
                return plain
            chosen = t > PART if fuse == EARLY else t <= PART
            return jnp.where(chosen, self.joined(windows, fuse=True), plain)

        first, second = jax.random.split(key)
        return denoising.sample(predict, jax.random.normal(first, shape), second, steps)

    def _windows(self, x: Array, axes: Axes) -> Float[Array, "B M W C1"]:
        """Each chunk behind its context, with a number that says whether a frame is there."""
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)
        if self.reads == FULL:
            return x[:, None]
        rows, _, channels = x.shape
        own = x.reshape(rows, -1, self.chunk, channels)
        if not self.context:
            return own
        start = jnp.zeros((rows, self.context, channels), x.dtype)
        first = collectives.left_halo(x, start, axes.seq)[:, None]
        before = jnp.concatenate([first, own[:, :-1, self.chunk - self.context :]], 1)
        return jnp.concatenate([lax.stop_gradient(before), own], 2)

    def _interface(self, params: Params, x: Array, time: Array, axes: Axes) -> Array:
        own = params["interface"]
        keys = jnp.concatenate([x, jnp.ones_like(x[..., :1])], -1)[:, :: self.every]
        keys = _embedded(own["key"], keys)
        z = own["start"] + (denoising.waves(time) @ params["time"])[:, None]
        z = z + self._reader(own["read"], z, [keys], axes)
        for number in range(self.processor):
            z = self._block(1)(own[f"block_{number}"], z, (), axes)
        return z

    @property
    def _reader(self) -> SourceAttention:
        size = self.width // self.heads
        return SourceAttention(
            self.width, (self.width,), self.heads, size, parallel=False, spread=True
        )

    def _block(self, sources: int) -> _Block:
        return _Block(self.width, self.heads, sources)


@dataclasses.dataclass(frozen=True)
class _Block:
    """Tokens attend to themselves and to other sources, in one softmax; then a feed-forward."""

    width: int
    heads: int
    sources: int

    @property
    def _attention(self) -> SourceAttention:
        widths = (self.width,) * self.sources
        return SourceAttention(
            self.width, widths, self.heads, self.width // self.heads, parallel=False
        )

    @property
    def _mlp(self) -> MLP:
        return MLP(self.width, expansion=2, dropout=0.0)

    def table(self) -> Table:
        """norm_0, attention, norm_1, mlp."""
        norm = LayerNorm(self.width).table()
        parts = {"norm_0": norm, "attention": self._attention.table()}
        return {**parts, "norm_1": norm, "mlp": self._mlp.table()}

    def __call__(
        self,
        params: Params,
        h: Array,
        sources: Sequence[Array],
        axes: Axes,
        whole: str | None = None,
    ) -> Array:
        """h after both halves; `whole` is the mesh axis over which tokens see all others."""
        norm = LayerNorm(self.width)
        x, _ = norm(params["norm_0"], h)
        seen = collectives.all_gather(x, whole, 1)
        h = h + self._attention(params["attention"], x, [seen, *sources], axes)
        x, _ = norm(params["norm_1"], h)
        y, _ = self._mlp(params["mlp"], x, None, axes)
        return h + y


def _affine(inputs: int, outputs: int, taps: int = 1) -> Table:
    shape = taps, inputs, outputs
    return {
        "weight": Param(shape, (None, None, None), fan_in(taps * inputs)),
        "bias": Param((outputs,), (None,), zeros, decay=False),
    }


def _embedded(params: Params, frames: Float[Array, "B W C"]) -> Float[Array, "B W D"]:
    """Each frame with its neighbours, as many on both sides; zeros beyond the window."""
    beside = len(params["weight"]) // 2
    return convolve(frames, params["weight"], params["bias"], pads=[(beside, beside)])
