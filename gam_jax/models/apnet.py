"""APNet: a vocoder that works in frames alone, one branch for amplitudes and one for phases.

Source: Ai and Ling 2023 (arXiv 2305.07952) and its released code.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE
from gam_jax.layers.branches import branches
from gam_jax.layers.convolution import Convolution, Pointwise
from gam_jax.layers.delayed import MEAN, Node, Parallel, Sequential, residual
from gam_jax.models.base import BATCH, Batch, Measures, Model
from gam_jax.models.frames import SpectralSound, check_frames, check_rows
from gam_jax.ops import spectrum as spectra
from gam_jax.params import Params, Table
from sharding.axes import Axes
from sharding.bounds import NotNegative, Size
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class APNet(Model):
    """Sound from mel spectra: log A = a(mel), phase = atan2(I, R) of p(mel), then one inverse STFT.

    a and p have like trunks and share nothing: a convolution, residual stacks with other kernels
    side by side, their mean. No signal within is longer than the frames are many.

    Attributes:
      width: channels of both trunks.
      kernels: of the stacks side by side.
      dilations: in each stack; each is a dilated convolution and a plain one.
      ends: taps of the first and the last convolutions.
      mels: of the input.
      rate: samples a second.
      size: samples of a frame; F = size / 2 + 1.
      window: of Hann's, within a frame.
      hop: samples from a frame to the next.
      amplitude, phase, spectrum, mel: weights of the losses. That of spectra is inconsistency plus
        2.25 times the L1 of real and imaginary parts; that of mels is L1. The released code weighs
        45, 100, 20 and 45, and adds losses of discriminators, which are not here.
      released: whether errors of phases are measured as in the released code: -cos, and the first
        bin and frame beside the differences.
    """

    width: Size = 512
    kernels: tuple[Size, ...] = (3, 7, 11)
    dilations: tuple[Size, ...] = (1, 3, 5)
    ends: Size = 7
    mels: Size = 80
    rate: Size = 16000
    size: Size = 1024
    window: Size = 320
    hop: Size = 80
    amplitude: NotNegative = 45.0
    phase: NotNegative = 100.0
    spectrum: NotNegative = 20.0
    mel: NotNegative = 45.0
    released: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frames("APNet", self.size, self.window, self.hop)
        for name in ("kernels", "dilations"):
            if not getattr(self, name) or not all(1 <= n <= 999 for n in getattr(self, name)):
                raise UserError(f"APNet.{name}={getattr(self, name)}: give whole numbers from 1")

    @property
    def bins(self) -> int:
        """F."""
        return self.size // 2 + 1

    @property
    def amplitudes(self) -> Node:
        """[B, T, mels] to log amplitudes [B, T, F]."""
        return Sequential((*self._trunk, self._end(self.bins)))

    @property
    def phases(self) -> Node:
        """[B, T, mels] to phases [B, T, F]: real and imaginary parts, linear, and their angle."""
        pair = Parallel((self._end(self.bins), self._end(self.bins)), "concat")
        return Sequential((*self._trunk, pair, Pointwise("phase")))

    @property
    def network(self) -> Node:
        """[B, T, mels] to both, [B, T, 2 F]."""
        return Parallel((self.amplitudes, self.phases), "concat")

    @property
    def _trunk(self) -> tuple[Node, ...]:
        bend = Pointwise("leaky_relu_0.1")
        stacks = tuple(
            Sequential(
                tuple(
                    residual(
                        bend,
                        Convolution(kernel=kernel, dilation=dilation, normed=True),
                        bend,
                        Convolution(kernel=kernel, normed=True),
                    )
                    for dilation in self.dilations
                )
            )
            for kernel in self.kernels
        )
        return self._end(self.width), Parallel(stacks, MEAN), Pointwise("leaky_relu")

    def _end(self, width: int) -> Node:
        return Convolution(width, kernel=self.ends, normed=True)

    @property
    def hann(self) -> np.ndarray:
        """The window of both transforms."""
        return spectra.hann(self.window)

    @property
    def branches(self) -> int:
        """Amplitudes and phases."""
        return 2

    def table(self) -> Table:
        """amplitudes and phases, the two branches."""
        return {
            "amplitudes": self.amplitudes.table(self.mels),
            "phases": self.phases.table(self.mels),
        }

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """audio [rows, samples], weights [rows]."""
        return {"audio": (BATCH, None), "weights": (BATCH,)}

    def fitted(self, data: Dataset) -> APNet:
        """Itself.

        Raises:
          UserError: another rate, or a number of samples that is no multiple of the hop.
        """
        check_rows(data.config.name, data.sizes, self.rate, self.size, self.hop)
        return self

    def spectrum_of(self, audio: Float[Array, "B N"]) -> Complex[Array, "B T F"]:
        """Frames around every hop."""
        return spectra.stft(audio, self.hann, hop=self.hop, size=self.size)

    def mel_of(self, spectrum: Complex[Array, "B T F"]) -> Float[Array, "B T mels"]:
        """The logarithm of mel amplitudes, not below 1e-5."""
        filters = spectra.mel_filters(self.rate, self.size, self.mels)
        power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
        amplitudes = jnp.sqrt(power + 1e-9) @ jnp.asarray(filters, jnp.float32)
        return jnp.log(jnp.maximum(amplitudes, 1e-5))

    def __call__(
        self, params: Params, mel: Float[Array, "B T mels"], axes: Axes = WHOLE
    ) -> SpectralSound:
        """Amplitudes, phases and sound of mel spectra; the branches at once where `stream` is 2."""

        def amplitudes(given: tuple[Params, Array]) -> Array:
            return self.amplitudes(given[0]["amplitudes"], given[1])

        def phases(given: tuple[Params, Array]) -> Array:
            return self.phases(given[0]["phases"], given[1])

        logs, angles = branches(amplitudes, phases, (params, mel), axes)
        made = spectra.polar(logs, angles)
        return SpectralSound(logs, angles, self.sound_of(made))

    def sound_of(self, spectrum: Complex[Array, "B T F"]) -> Float[Array, "B N"]:
        """The inverse of `spectrum_of`."""
        return spectra.istft(spectrum, self.hann, hop=self.hop, size=self.size)

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], float, Measures]:
        """The weighted sum of the losses; errors of phases; log-spectral distance in dB.

        Errors are weighed by amplitude, since silence has no phase: "phase_error" of the phases
        themselves, "frequency_error" of their differences from a frame to the next. No mel tells
        when a pure tone began, so that its phase can only be guessed, its frequency not.
        """
        target, weights = self.spectrum_of(batch["audio"]), batch["weights"]
        mel = self.mel_of(target)
        spoken = self(params, mel, axes)
        parts = self.loss_parts(spoken, target, mel)
        total = jnp.sum(weights * sum(parts.values()))
        size = jnp.abs(target)
        phases = spectra.phases_of(target)
        off = spoken.phase - phases
        told = {
            "phase_error": _weighed(spectra.anti_wrapped(off), size),
            "frequency_error": _weighed(spectra.anti_wrapped(jnp.diff(off, axis=1)), size[:, 1:]),
        }
        again = spectra.log_amplitude(self.spectrum_of(spoken.audio))
        decibels = 20 / np.log(10) * (again - spectra.log_amplitude(target))
        distance = jnp.mean(jnp.sqrt(jnp.mean(jnp.square(decibels), -1) + 1e-12), -1)
        count = jnp.sum(weights)
        each = {**told, "lsd": distance}
        return total, 0.0, {name: (jnp.sum(x * weights), count) for name, x in each.items()}

    def loss_parts(
        self, spoken: SpectralSound, target: Complex[Array, "B T F"], mel: Float[Array, "B T mels"]
    ) -> dict[str, Array]:
        """Each loss [B], weighed: "amplitude", "phase", "spectrum", "mel"."""
        both = (-2, -1)
        measure = spectra.negative_cosine if self.released else spectra.anti_wrapped
        phases = spectra.phases_of(target)
        wrapped = spectra.phase_losses(spoken.phase, phases, measure, first=self.released)
        of_phases = wrapped.instantaneous + wrapped.group_delay + wrapped.angular_frequency
        made = spectra.polar(spoken.log_amplitude, spoken.phase)
        off = made - target
        parts = jnp.mean(jnp.abs(off.real), both) + jnp.mean(jnp.abs(off.imag), both)
        loose = spectra.inconsistency(made, self.hann, hop=self.hop, size=self.size)
        logs = spoken.log_amplitude - spectra.log_amplitude(target)
        again = self.mel_of(self.spectrum_of(spoken.audio))
        return {
            "amplitude": self.amplitude * jnp.mean(jnp.square(logs), both),
            "phase": self.phase * of_phases,
            "spectrum": self.spectrum * (loose + 2.25 * parts),
            "mel": self.mel * jnp.mean(jnp.abs(again - mel), both),
        }


def _weighed(x: Array, weights: Array) -> Array:
    """The mean over frames and bins, [B]."""
    return jnp.sum(x * weights, (1, 2)) / jnp.sum(weights + 1e-9, (1, 2))
