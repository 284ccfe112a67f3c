"""PEPSI: pictures with holes filled by one encoder and one decoder that is used twice.

Source: PEPSI++ (arXiv 1905.09010) and the released code of PEPSI, without its discriminator.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE, known
from gam_jax.models.base import BATCH, Batch, Measures, Model, sizes_of
from gam_jax.ops.convolution import convolve
from gam_jax.ops.patches import SIDE, contextual
from gam_jax.params import Param, Params, Table, fan_in, ones, zeros
from sharding.axes import Axes
from sharding.bounds import NotNegative, Size
from sharding.errors import UserError

TWO, ONE, CASCADE = "two", "one", "cascade"


@dataclasses.dataclass(frozen=True)
class Inpainter(Model):
    """Pictures [B, S, S, C] in -1 .. 1 from what is known of them.

    Encoder E: a convolution of 5 x 5, then for each halving one of 3 x 3 with stride 2 and, but for
    the last, one without; then one for each of `rates`, dilated. Decoder: pairs of convolutions of
    3 x 3, each but the last before a doubling, and one to the colours. Edges are reflected, ELU
    stands behind every convolution but the last. The result is Dec(ELU(M [E, A])) in the hole, with
    A the `contextual` E and M a map of 1 x 1, and the picture itself around it.

    In training the coarse path Dec(E) is lowered too, by the same decoder; its weight fades as the
    data say. When used it does not run.

    Attributes:
      width: channels behind the first convolution; they double with each halving.
      channels: C; the data's where it is None.
      halvings: convolutions with stride 2; S is a multiple of 2^halvings, three times it or more.
      rates: of the dilated convolutions.
      shared: whether these have one kernel W: that of rate d is beta_d W + gamma_d, with a scale
        and a shift for each output channel. The source says no shapes of them.
      paths: "two"; "one", without the coarse path; "cascade", a generator of the coarse picture
        with parameters of its own, whose result the second one is given in the hole.
      fine: weight of the mean absolute error of the result.
      coarse: of the coarse picture, before it fades.
    """

    width: Size = 32
    channels: Size | None = None
    halvings: Size = 3
    rates: tuple[Size, ...] = (2, 4, 8, 16)
    shared: bool = False
    paths: str = TWO
    fine: NotNegative = 10.0
    coarse: NotNegative = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.paths not in (TWO, ONE, CASCADE):
            raise UserError(f"model.paths='{self.paths}' is not one of {TWO}, {ONE}, {CASCADE}")
        if not self.rates or not all(1 <= rate <= 64 for rate in self.rates):
            raise UserError(f"model.rates={self.rates}: give whole numbers from 1 to 64")
        if self.width % 2 or self.halvings > 6:
            raise UserError(
                f"model.width={self.width}, model.halvings={self.halvings}: give an even width and "
                f"at most 6 halvings"
            )

    def fitted(self, data: Dataset) -> Inpainter:
        """With the channels of the data.

        Raises:
          UserError: the data has other channels than the model, or sides that it cannot halve.
        """
        if (side := data.sizes.get("side")) is not None:
            self._check_side(side)
        return dataclasses.replace(self, **sizes_of(self, data, ("channels",)))

    def _check_side(self, side: int) -> None:
        step = 2**self.halvings
        if side % step or side < SIDE * step:
            raise UserError(
                f"a picture's side of {side} and model.halvings={self.halvings}: give a multiple "
                f"of {step} from {SIDE * step} on, or fewer halvings"
            )

    @property
    def inner(self) -> int:
        """Channels of the narrowest place."""
        return self.width * 2**self.halvings

    def table(self) -> Table:
        """encoder, mixer, decoder; of a cascade also first: encoder, decoder."""
        inner = self.inner
        found = {
            "encoder": self._encoder(),
            "mixer": _conv(1, 2 * inner, inner),
            "decoder": self._decoder(),
        }
        if self.paths == CASCADE:
            found["first"] = {"encoder": self._encoder(), "decoder": self._decoder()}
        return found

    def _encoder(self) -> Table:
        size, inner = self.width, self.inner
        channels = known(self.channels, "channels", self)
        found: dict[str, Any] = {"conv_0": _conv(5, 2 * channels, size)}
        for number in range(self.halvings):
            found[f"half_{number}"] = _conv(3, size, 2 * size)
            size *= 2
            if number < self.halvings - 1:
                found[f"conv_{number + 1}"] = _conv(3, size, size)
        if not self.shared:
            return found | {f"rate_{d}": _conv(3, inner, inner) for d in self.rates}
        found["kernel"] = _conv(3, inner, inner)["weight"]
        for d in self.rates:
            found[f"rate_{d}"] = {
                "scale": Param((inner,), (None,), ones, decay=False),
                "shift": Param((inner,), (None,), zeros, decay=False),
                "bias": Param((inner,), (None,), zeros, decay=False),
            }
        return found

    def _decoder(self) -> Table:
        size, found = self.inner, {}
        for number in range(self.halvings + 1):
            found[f"pair_{number}"] = {
                "first": _conv(3, size, size // 2),
                "second": _conv(3, size // 2, size // 2),
            }
            size //= 2
        return {**found, "colours": _conv(3, size, known(self.channels, "channels", self))}

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """images [rows, S, S, C], known [rows, S, S, 1], coarse and weights [rows]."""
        picture = (BATCH, None, None, None)
        return {"images": picture, "known": picture, "coarse": (BATCH,), "weights": (BATCH,)}

    def encode(
        self, params: Params, images: Float[Array, "B S S C"], known: Float[Array, "B S S 1"]
    ) -> Float[Array, "B N N D"]:
        """Features of masked pictures beside their mask.

        Args:
          params: those of an encoder.
          images: pictures, zeros where nothing is known.
          known: 1 where a pixel is known, 0 in the hole.
        """
        x = jnp.concatenate([images, jnp.broadcast_to(known, images.shape)], -1)
        x = _bent(params["conv_0"], x)
        for number in range(self.halvings):
            x = _bent(params[f"half_{number}"], x, stride=2)
            if number < self.halvings - 1:
                x = _bent(params[f"conv_{number + 1}"], x)
        for d in self.rates:
            own = params[f"rate_{d}"]
            if self.shared:
                kernel = own["scale"] * params["kernel"] + own["shift"]
                own = {"weight": kernel, "bias": own["bias"]}
            x = _bent(own, x, dilation=d)
        return x

    def decode(self, params: Params, x: Float[Array, "B N N D"]) -> Float[Array, "B S S C"]:
        """Pictures of features, cut to -1 .. 1.

        Args:
          params: those of a decoder.
          x: features.
        """
        for number in range(self.halvings + 1):
            pair = params[f"pair_{number}"]
            x = _bent(pair["second"], _bent(pair["first"], x))
            if number < self.halvings:
                x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
        return jnp.clip(_applied(params["colours"], x), -1, 1)

    def fused(
        self, params: Params, x: Float[Array, "B N N D"], known: Float[Array, "B S S 1"]
    ) -> Float[Array, "B N N D"]:
        """Features that the patches around the hole have filled.

        A feature is known where all pixels of its square are.
        """
        step = known.shape[1] // x.shape[1]
        squares = known.reshape(len(known), x.shape[1], step, x.shape[2], step)
        found = contextual(x, jnp.min(squares, (2, 4))[..., None])
        return _bent(params["mixer"], jnp.concatenate([x, found], -1))

    def __call__(
        self, params: Params, images: Float[Array, "B S S C"], known: Float[Array, "B S S 1"]
    ) -> Float[Array, "B S S C"]:
        """The pictures, each known pixel as it was: what is run when the model is used."""
        made, _ = self.both(params, images, known, coarse=False)
        return made * (1 - known) + images * known

    def both(
        self, params: Params, images: Array, known: Array, coarse: bool = True
    ) -> tuple[Array, Array | None]:
        """The result before known pixels are laid over it, and the coarse picture where it is made.

        Args:
          params: see `table`.
          images: pictures; what the hole hides is not read.
          known: 1 where a pixel is known.
          coarse: whether the coarse path runs where it is there for training alone.

        Raises:
          UserError: sides that cannot be halved so often.
        """
        for side in images.shape[1:3]:
            self._check_side(side)
        given = images * known
        if self.paths == CASCADE:
            first = params["first"]
            rough = self.decode(first["decoder"], self.encode(first["encoder"], given, known))
            given = given + rough * (1 - known)
        x = self.encode(params["encoder"], given, known)
        inner = self.fused(params, x, known)
        if self.paths == CASCADE:
            return self.decode(params["decoder"], inner), rough
        if self.paths == ONE or not coarse:
            return self.decode(params["decoder"], inner), None
        # Both at once, as rows of one batch.
        made, rough = jnp.split(self.decode(params["decoder"], jnp.concatenate([inner, x])), 2)
        return made, rough

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], float, Measures]:
        """The weighted sum of both absolute errors; and in the hole the ratio of peak to noise."""
        images, known, weights = batch["images"], batch["known"], batch["weights"]
        made, rough = self.both(params, images, known)
        losses = self.fine * _error(made, images)
        if rough is not None:
            losses += self.coarse * batch["coarse"] * _error(rough, images)
        hole = 1 - known
        pixels = jnp.sum(hole, (1, 2, 3)) * images.shape[-1]
        off = jnp.sum(jnp.square(made - images) * hole, (1, 2, 3)) / jnp.maximum(pixels, 1)
        decibels = 10 * jnp.log10(4 / (off + 1e-10))  # from -1 to 1 is a peak of 2
        told = {"psnr": (jnp.sum(weights * decibels), jnp.sum(weights))}
        return jnp.sum(weights * losses), 0.0, told


def _conv(side: int, inputs: int, outputs: int) -> Table:
    return {
        "weight": Param((side, side, inputs, outputs), (None,) * 4, fan_in(side * side * inputs)),
        "bias": Param((outputs,), (None,), zeros, decay=False),
    }


def _applied(params: Params, x: Array, stride: int = 1, dilation: int = 1) -> Array:
    beside = dilation * (params["weight"].shape[0] // 2)
    x = jnp.pad(x, ((0, 0), (beside, beside), (beside, beside), (0, 0)), mode="reflect")
    return convolve(x, params["weight"], params["bias"], stride=stride, dilation=dilation)


def _bent(params: Params, x: Array, stride: int = 1, dilation: int = 1) -> Array:
    return jax.nn.elu(_applied(params, x, stride, dilation))


def _error(made: Array, images: Array) -> Float[Array, B]:
    return jnp.mean(jnp.abs(made - images), (1, 2, 3))
