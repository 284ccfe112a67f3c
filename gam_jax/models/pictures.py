"""A denoiser of several pictures at once: views of a thing, or frames of a clip."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE, known
from gam_jax.layers.norm import LayerNorm
from gam_jax.layers.pictures import BETWEEN, ROWS, TIME, PictureBlock
from gam_jax.models.base import BATCH, TOKEN, Batch, Measures, Model, sizes_of
from gam_jax.ops import denoising
from gam_jax.params import (
    Param,
    Params,
    Table,
    abstract_params,
    fan_in,
    init_params,
    normal,
    path_name,
    zeros,
)
from sharding.axes import Axes
from sharding.bounds import AtLeastOne, Count, Positive, Size
from sharding.errors import UserError
from sharding.layout import Layout

ADAPTERS = "*/between/*,*/reference/*,rays/*"
"""What an optimizer trains of adapters beside a frozen model of single pictures."""
ONLY_BETWEEN = "*/between/*"
"""What it trains where it trains the layers between pictures alone, those of time."""
ONLY_WITHIN = "*/norm_0/*,*/within/*,*/norm_1/*,*/mlp/*"
"""What it trains where it trains the layers within pictures alone."""
RAYS = 6
"""Numbers of a ray: origin and direction."""


@dataclasses.dataclass(frozen=True)
class PictureDenoiser(Model):
    """Velocities of noised pictures [B, N, S, S, C], all of a row at one time.

    v = k x_t + c F(x_t / d), with d^2 = alpha^2 s^2 + sigma^2 the variance of x_t, c = s / d and
    k = alpha sigma (1 - s^2) / d^2, so that the network F has inputs and targets of variance 1 at
    any time (arXiv 2206.00364, section 5, for velocities). A token of F is a square of pixels.
    Blocks have attention within each picture and, with `sees`, between pictures
    (`gam_jax.layers.pictures`). A prompt's words, and the time, are added to every token. With
    `seq` over devices each has some of the pictures.

    Attributes:
      width: D.
      depth: blocks.
      heads: of each attention.
      patch: pixels of a token's side.
      sees: "" for pictures each by itself; "rows", "time" or "full".
      beside: whether the attention between pictures stands beside the one within them.
      guided: whether rows bring the camera's rays, added to the tokens, and a clean reference: the
        model itself reads it at time 0, as a single picture, and each block attends to what its
        own norm made of it. Both begin as nothing.
      scales: of what is added between pictures and from the reference.
      shift: noise of training, as `denoising.shifted` has it.
      spread: s, the deviation of pictures.
      words: of prompts; the data's where it is 0, none where these have none.
      pictures: N; the data's where it is None.
      side: S; likewise.
      channels: C; likewise.
    """

    width: Size = 48
    depth: Size = 2
    heads: Size = 4
    patch: Size = 2
    sees: str = ""
    beside: bool = True
    guided: bool = False
    scales: tuple[float, float] = (1.0, 1.0)
    shift: AtLeastOne = 1.0
    spread: Positive = 0.3
    words: Count = 0
    pictures: Size | None = None
    side: Size | None = None
    channels: Size | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise UserError(
                f"model.heads={self.heads} does not divide model.width={self.width}: change one"
            )
        if len(self.scales) != 2:
            raise UserError(f"model.scales={self.scales}: give two numbers")
        if self.side is not None and self.side % self.patch:
            raise UserError(
                f"model.patch={self.patch} does not divide the side of {self.side} pixels"
            )
        if self.sees not in ("", *BETWEEN):
            raise UserError(
                f"model.sees='{self.sees}' is not one of {', '.join(BETWEEN)}, or empty for none"
            )

    @property
    def _block(self) -> PictureBlock:
        return PictureBlock(
            self.width, self.heads, self.sees, self.beside, self.guided, self.pictures
        )

    @property
    def _alone(self) -> PictureBlock:
        """The block of a single picture, with the same names of parameters."""
        return PictureBlock(self.width, self.heads)

    def fitted(self, data: Dataset) -> PictureDenoiser:
        """With the sizes of the data.

        Raises:
          UserError: the data has other sizes than the model.
        """
        sizes = sizes_of(self, data, ("pictures", "side", "channels"))
        words = data.sizes.get("words", 0)
        if self.words not in (0, words):
            raise UserError(f"model.words={self.words}, and the data has {words}: leave it out")
        return dataclasses.replace(self, **sizes, words=words)

    def check_mesh(self, layout: Layout) -> None:
        """Refuses what `Model` does, and devices along `seq` that pictures do not divide over.

        Nor rows of tokens, where these are exchanged for pictures.

        Raises:
          UserError: such a mesh.
        """
        super().check_mesh(layout)
        parts = layout.mesh.shape.get("seq", 1)
        pictures, side = self.pictures, self.side
        if parts == 1 or pictures is None or side is None:
            return
        rows = side // self.patch
        if pictures % parts or (self.sees in (ROWS, TIME) and rows % parts):
            raise UserError(
                f"mesh axis seq={parts}: {pictures} pictures in {rows} rows of tokens do not "
                f"divide over it: make it a divisor of both"
            )

    def table(self) -> Table:
        """patch, place, time, words; rays; block_0 ...; norm, head."""
        width, numbers = self.width, self.patch**2 * known(self.channels, "channels", self)
        rows = known(self.side, "side", self) // self.patch
        found: dict[str, Any] = {
            "patch": _affine(numbers, width),
            "place": Param((rows, rows, width), (None,) * 3, normal(0.5), decay=False),
            "time": Param((2 * denoising.WAVES, width), (None, None), fan_in(denoising.WAVES)),
        }
        if self.words:
            found["words"] = Param((self.words, width), (None, None), normal(0.5), decay=False)
        if self.guided:
            second = Param((width, width), (None, None), zeros)
            found["rays"] = {"first": _affine(self.patch**2 * RAYS, width), "second": second}
        blocks = {f"block_{number}": self._block.table() for number in range(self.depth)}
        head = Param((width, numbers), (None, None), zeros)
        return {**found, **blocks, "norm": LayerNorm(width).table(), "head": head}

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """pictures and noise [rows, N, S, S, C], time and weights [rows].

        prompt [rows, 2] where there are words; rays [rows, N, S, S, 6] and reference
        [rows, S, S, C] where guided.
        """
        spread = (BATCH, TOKEN, None, None, None)
        found = {"pictures": spread, "noise": spread, "time": (BATCH,), "weights": (BATCH,)}
        if self.words:
            found["prompt"] = (BATCH, None)
        if self.guided:
            found |= {"rays": spread, "reference": (BATCH, None, None, None)}
        return found

    def ids(self) -> dict[str, int]:
        """The words of prompts."""
        return {"prompt": self.words} if self.words else {}

    def begun(self, base: Params, key: Array, copied: bool = True) -> Params:
        """Parameters with which the model gives what a model of single pictures gives.

        Args:
          base: parameters of the same model without adapters.
          key: of those that are new.
          copied: whether queries, keys and values of the new attentions, and their norm where they
            have one, are those of the attention within pictures; else they are drawn. Outputs are
            zeros either way.

        Raises:
          UserError: parameters of another model.
        """
        plain = dataclasses.replace(self, sees="", guided=False)
        wanted, given = (_shapes(x) for x in (abstract_params(plain.table()), base))
        if wanted != given:
            name = min(dict(wanted ^ given))
            raise UserError(
                f"the base's parameters are not those of this model without adapters: see {name}"
            )
        own = dict(init_params(self.table(), key))
        for name, entry in base.items():
            own[name] = {**own[name], **entry} if name.startswith("block_") else entry
        return self._copied(own) if copied else own

    def _copied(self, params: Params) -> Params:
        found, copy = dict(params), functools.partial(jax.tree.map, jnp.copy)
        for name in (f"block_{number}" for number in range(self.depth)):
            block = dict(found[name])
            if self.guided:
                block["reference"] = {**copy(block["within"]), "out": block["reference"]["out"]}
            if self.sees:
                between = dict(block["between"])
                between["attention"] = {**copy(block["within"]), "out": between["attention"]["out"]}
                if not self.beside:
                    between["norm"] = copy(block["norm_0"])
                block["between"] = between
            found[name] = block
        return found

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B n S S C"],
        time: Float[Array, B],
        given: Mapping[str, Array],
        axes: Axes = WHOLE,
    ) -> Float[Array, "B n S S C"]:
        """Velocities.

        Args:
          params: see `table`.
          x: this device's noised pictures.
          time: 0 to 1.
          given: what a batch has beside them: prompt, rays, reference.
          axes: mesh axes.
        """
        alpha, sigma = _levels(time)
        deviation = self._deviation(time)
        h = self._embedded(params, x / deviation) + self._told(params, time, given)
        seen: list[Array | None] = [None] * self.depth
        if self.guided:
            own = params["rays"]
            hidden = jax.nn.gelu(_applied(own["first"], _cut(given["rays"], self.patch)))
            h = h + hidden @ own["second"]
            seen = [*self.of_reference(params, given)]
        for number in range(self.depth):
            block = params[f"block_{number}"]
            h = self._block(block, h, axes, seen[number], self.scales)
        h, _ = LayerNorm(self.width)(params["norm"], h)
        found = self.spread / deviation * _joined(h @ params["head"], self.patch)
        return found + alpha * sigma * (1 - self.spread**2) / deviation**2 * x

    def of_reference(
        self, params: Params, given: Mapping[str, Array]
    ) -> list[Float[Array, "B T D"]]:
        """What the attentions of each block would read of the clean reference; no gradient."""
        picture = given["reference"][:, None]
        still = jnp.zeros(len(picture), picture.dtype)
        h, found = self._embedded(params, picture / self.spread), []
        h = h + self._told(params, still, given)
        for number in range(self.depth):
            block = params[f"block_{number}"]
            x = self._alone.normed(block, h)
            found.append(lax.stop_gradient(x.reshape(len(x), -1, self.width)))
            h = self._alone(block, h)
        return found

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], float, Measures]:
        """The weighted sum of mean squared errors of velocities."""
        x, time, wanted = self.lesson(batch)
        off = jnp.square(self(params, x, time, batch, axes) - wanted)
        losses = jnp.sum(jnp.mean(off, (2, 3, 4)), 1) / known(self.pictures, "pictures", self)
        return jnp.sum(batch["weights"] * losses), 0.0, {}

    def lesson(self, batch: Batch) -> tuple[Array, Array, Array]:
        """Noised pictures, their time, and the velocities that are to be predicted."""
        time = denoising.shifted(batch["time"], self.shift)
        given = batch["pictures"], batch["noise"], *_levels(time)
        return denoising.noised(*given), time, denoising.target(denoising.VELOCITY, *given)

    def draw(
        self, params: Params, key: Array, given: Mapping[str, Array], rows: int, steps: int = 32
    ) -> Float[Array, "B N S S C"]:
        """Pictures from noise by DDIM, on one device.

        Args:
          params: see `table`.
          key: random key.
          given: see `__call__`, of so many rows.
          rows: B.
          steps: of the sampler.
        """
        names = "pictures", "side", "channels"
        pictures, side, channels = (known(getattr(self, name), name, self) for name in names)
        first, second = jax.random.split(key)
        start = jax.random.normal(first, (rows, pictures, side, side, channels))

        def predict(x: Array, t: Array) -> Array:
            return self(params, x, jnp.full(rows, t), given)

        return denoising.sample(predict, start, second, steps)

    def _embedded(self, params: Params, x: Array) -> Float[Array, "B n R R D"]:
        return _applied(params["patch"], _cut(x, self.patch)) + params["place"]

    def _deviation(self, time: Array) -> Array:
        """Of noised pictures."""
        alpha, sigma = _levels(time)
        return jnp.sqrt(jnp.square(alpha * self.spread) + jnp.square(sigma))

    def _told(self, params: Params, time: Array, given: Mapping[str, Array]) -> Array:
        """What every token is told: the time and the prompt."""
        told = denoising.waves(time) @ params["time"]
        if self.words:
            told = told + jnp.sum(params["words"][given["prompt"]], 1)
        return told[:, None, None, None]


def _levels(time: Float[Array, B]) -> tuple[Array, Array]:
    """alpha and sigma, to be multiplied with pictures."""
    alpha, sigma = (one[:, None, None, None, None] for one in denoising.levels(time))
    return alpha, sigma


def _shapes(params: Any) -> set[tuple[str, tuple[int, ...]]]:
    """Names and shapes of parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {(path_name(path), x.shape) for path, x in leaves}


def _affine(inputs: int, outputs: int) -> Table:
    return {
        "weight": Param((inputs, outputs), (None, None), fan_in(inputs)),
        "bias": Param((outputs,), (None,), zeros, decay=False),
    }


def _applied(params: Params, x: Array) -> Array:
    return x @ params["weight"] + params["bias"]


def _cut(x: Float[Array, "B n S S C"], patch: int) -> Float[Array, "B n R R P"]:
    """Squares of pixels as tokens."""
    rows, pictures, side, _, channels = x.shape
    x = x.reshape(rows, pictures, side // patch, patch, side // patch, patch, channels)
    return jnp.moveaxis(x, 3, 4).reshape(rows, pictures, side // patch, side // patch, -1)


def _joined(x: Float[Array, "B n R R P"], patch: int) -> Float[Array, "B n S S C"]:
    """The inverse of `_cut`."""
    rows, pictures, count, _, _ = x.shape
    x = x.reshape(rows, pictures, count, count, patch, patch, -1)
    return jnp.moveaxis(x, 4, 3).reshape(rows, pictures, count * patch, count * patch, -1)
