"""Judges of sounds: which are true and which are made, by their samples and by their spectra.

Sources: periods from HiFi-GAN (arXiv 2010.05646); amplitudes and phases at several resolutions, and
the losses, from AP-BWE (arXiv 2401.06387) and its released code.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gam_jax.ops import spectrum as spectra
from gam_jax.ops.convolution import convolve
from gam_jax.params import Param, Params, Table, fan_in
from sharding.bounds import NotNegative, Size, check_bounds
from sharding.errors import UserError

SPECTRAL = (
    ((7, 5), (2, 2)),
    ((5, 3), (2, 1)),
    ((5, 3), (2, 2)),
    ((3, 3), (2, 1)),
    ((3, 3), (2, 2)),
)
"""Taps and strides over (bins, frames) of the convolutions of a judge of spectra."""
GROWTH = (1, 4, 16, 32, 32)
"""Channels of the convolutions of a judge of periods, as multiples of the first's."""
SLOPE = 0.1
"""Below zero, after each convolution but the last."""


class Judged(NamedTuple):
    """What a judge says of sounds.

    Attributes:
      scores: [B, places], above 0 for true.
      features: what its convolutions gave, [B, ...] each.
    """

    scores: Array
    features: tuple[Array, ...]


class Verdicts(NamedTuple):
    """Losses of a batch, [B] each, summed over all judges by their weights.

    Attributes:
      judges: what the judges lower: relu(1 - D(true)) + relu(1 + D(made)).
      made: what the maker lowers: relu(1 - D(made)).
      features: how far what convolutions gave of the made lies from what they gave of the true.
    """

    judges: Array
    made: Array
    features: Array


@dataclasses.dataclass(frozen=True)
class Discriminators:
    """Judges of three kinds, each with parameters of its own.

    A judge of a period folds samples into rows of so many and convolves down the columns; a judge
    of amplitudes, or of phases, convolves over a spectrum of rectangular windows.

    Attributes:
      periods: one judge each.
      frames: samples of a frame, one judge of amplitudes and one of phases each; the hop is a
        quarter.
      period_width: channels of a judge of periods after its first convolution.
      width: channels of a judge of spectra.
      spectral: weight of the judges of spectra, beside 1 of those of periods.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    frames: tuple[int, ...] = (512, 1024, 2048)
    period_width: Size = 32
    width: Size = 64
    spectral: NotNegative = 0.1

    def __post_init__(self) -> None:
        check_bounds(self)
        if not all(1 <= period <= 999 for period in self.periods):
            raise UserError(f"Discriminators.periods={self.periods}: give whole numbers from 1")
        for name in ("periods", "frames"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UserError(f"Discriminators.{name}={getattr(self, name)}: give each once")
        if not all(8 <= size <= 1 << 16 and size % 4 == 0 for size in self.frames):
            raise UserError(
                f"Discriminators.frames={self.frames}: give multiples of 4 from 8 to 65536"
            )
        if not self.periods and not self.frames:
            raise UserError("Discriminators: there is no judge: give periods or frames")

    def check_samples(self, samples: int) -> None:
        """Refuses sounds that are too short.

        Raises:
          UserError: no more than half of the longest frame, or less than two of the longest period.
        """
        least = max([size // 2 + 1 for size in self.frames] + [2 * p for p in self.periods])
        if samples < least:
            raise UserError(
                f"rows of {samples} samples are too short for Discriminators with frames="
                f"{self.frames} and periods={self.periods}: give at least {least}"
            )

    def table(self) -> Table:
        """period_2 ..., amplitude_512 ..., phase_512 ...: convolution_0 ... and last."""
        found = {f"period_{period}": self._period_table() for period in self.periods}
        for kind in ("amplitude", "phase"):
            found |= {f"{kind}_{size}": self._spectral_table() for size in self.frames}
        return found

    def _period_table(self) -> Table:
        inputs, found = 1, {}
        for number, growth in enumerate(GROWTH):
            found[f"convolution_{number}"] = _filters((5, 1), inputs, growth * self.period_width)
            inputs = growth * self.period_width
        return {**found, "last": _filters((3, 1), inputs, 1)}

    def _spectral_table(self) -> Table:
        inputs, found = 1, {}
        for number, (taps, _) in enumerate(SPECTRAL):
            found[f"convolution_{number}"] = _filters(taps, inputs, self.width)
            inputs = self.width
        return {**found, "last": _filters((3, 3), inputs, 1)}

    def seen(self, audio: Float[Array, "B N"]) -> dict[str, Array]:
        """What each judge is given: samples, or an image of bins and frames."""
        found = {f"period_{period}": audio for period in self.periods}
        for size in self.frames:
            spectrum = spectra.stft(audio, np.ones(size), hop=size // 4)
            own = {"amplitude": jnp.abs(spectrum), "phase": spectra.phases_of(spectrum)}
            found |= {f"{kind}_{size}": jnp.swapaxes(x, 1, 2)[..., None] for kind, x in own.items()}
        return found

    def __call__(self, params: Params, seen: dict[str, Array]) -> dict[str, Judged]:
        """What each judge says of what it sees."""
        found = {}
        for name, x in seen.items():
            if name.startswith("period"):
                found[name] = of_period(params[name], x, int(name.split("_")[1]))
            else:
                found[name] = of_spectrum(params[name], x)
        return found

    def weight(self, name: str) -> float:
        """That of a judge's losses."""
        return 1.0 if name.startswith("period") else self.spectral

    def verdicts(
        self, params: Params, true: Float[Array, "B N"], made: Float[Array, "B N"]
    ) -> Verdicts:
        """The losses of both sides of the game, each with a gradient by its own parameters alone.

        Judges' losses see the made sounds as given; the others see the judges as given.
        """
        return self.verdicts_of(params, self.seen(true), self.seen(made))

    def verdicts_of(
        self, params: Params, true: dict[str, Array], made: dict[str, Array]
    ) -> Verdicts:
        """The same of what judges see of both."""
        frozen = jax.lax.stop_gradient(params)
        seen, fake = self(params, true), self(params, jax.lax.stop_gradient(made))
        wanted, judged = self(frozen, true), self(frozen, made)
        losses = [jnp.zeros(())] * 3
        for name in judged:
            own = (
                _mean(jax.nn.relu(1 - seen[name].scores) + jax.nn.relu(1 + fake[name].scores)),
                _mean(jax.nn.relu(1 - judged[name].scores)),
                sum(
                    _mean(jnp.abs(a - b))
                    for a, b in zip(wanted[name].features, judged[name].features, strict=True)
                ),
            )
            losses = [x + self.weight(name) * y for x, y in zip(losses, own, strict=True)]
        return Verdicts(*losses)


def of_period(params: Params, audio: Float[Array, "B N"], period: int) -> Judged:
    """A judge of samples that lie a period apart; its first convolution's outputs are not told.

    The end is reflected up to a multiple of the period.
    """
    over = -audio.shape[1] % period
    x = jnp.pad(audio, ((0, 0), (0, over)), mode="reflect")
    x = x.reshape(len(x), -1, period, 1)
    features = []
    for number in range(len(GROWTH)):
        stride = (1 if number == len(GROWTH) - 1 else 3, 1)
        x = _bent(params[f"convolution_{number}"], x, stride)
        if number:
            features.append(x)
    x = _convolved(params["last"], x)
    return Judged(x.reshape(len(x), -1), (*features, x))


def of_spectrum(params: Params, x: Float[Array, "B F T 1"]) -> Judged:
    """A judge of an image of bins and frames."""
    features = []
    for number, (_, stride) in enumerate(SPECTRAL):
        x = _bent(params[f"convolution_{number}"], x, stride)
        features.append(x)
    x = _convolved(params["last"], x)
    return Judged(x.reshape(len(x), -1), (*features, x))


def _mean(x: Array) -> Float[Array, B]:
    return jnp.mean(x.reshape(len(x), -1), 1)


def _bent(params: Params, x: Array, stride: tuple[int, int]) -> Array:
    return jax.nn.leaky_relu(_convolved(params, x, stride), SLOPE)


def _convolved(params: Params, x: Array, stride: tuple[int, int] = (1, 1)) -> Array:
    """With filters of unit length times a gain, and zeros on both sides."""
    weight = params["weight"]
    length = jnp.sqrt(jnp.sum(jnp.square(weight), (0, 1, 2)))
    pads = [(taps // 2, taps // 2) for taps in weight.shape[:2]]
    filters = weight * (params["gain"] / length)
    return convolve(x, filters, params["bias"], stride=stride, pads=pads)


def _filters(taps: tuple[int, int], inputs: int, outputs: int) -> Table:
    start = fan_in(math.prod(taps) * inputs)
    return {
        "weight": Param((*taps, inputs, outputs), (None,) * 4, start),
        "gain": Param((outputs,), (None,), _unit, decay=False),
        "bias": Param((outputs,), (None,), start, decay=False),
    }


def _unit(key: Array, shape: tuple[int, ...]) -> Array:
    """The expected length of a filter that `fan_in` draws."""
    return jnp.full(shape, 1 / math.sqrt(3))
