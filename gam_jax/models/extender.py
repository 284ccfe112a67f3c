"""AP-BWE: sounds of a narrow band made wide, by amplitudes and phases that tell each other.

Source: Lu, Ai, Du and Ling 2024 (arXiv 2401.06387) and its released code.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE
from gam_jax.layers.branches import coupled
from gam_jax.models.base import BATCH, Batch, Measures, Model
from gam_jax.models.discriminators import Discriminators
from gam_jax.models.frames import SpectralSound, check_frames, check_rows
from gam_jax.ops import spectrum as spectra
from gam_jax.ops.activation import gelu
from gam_jax.ops.convolution import convolve
from gam_jax.ops.linear import by_rows, linear
from gam_jax.ops.norm import layer_norm
from gam_jax.params import Initializer, Param, Params, Table, fan_in, normal, ones, zeros
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import NotNegative, Size
from sharding.errors import UserError

FLOOR = 1e-4
"""Added to amplitudes before their logarithm is taken."""
EPS = 1e-6
"""Of all norms."""
RIVALS = "discriminators"
"""Parameters of the other side of the game."""


@dataclasses.dataclass(frozen=True)
class BandExtender(Model):
    """Wide-band sounds from narrow-band ones in short-time spectra: two streams of ConvNeXt blocks.

    One stream reads log amplitudes, the other phases, both [B, T, F]; each is a convolution to
    `width` channels and `rounds` rounds. In a round the streams add each other, (m, p) to
    (m + p, m + 2 p), and each goes through a block of its own. Amplitudes come out as what is added
    to those given, phases as the angle of two linear maps.

    Parameters of both streams lie side by side, [.., 2, ..]. Where `stream` is split over two
    devices each has its own half, computes one stream, and swaps it once a round.

    Attributes:
      width: channels of a stream, D.
      rounds: of swap and block.
      expansion: hidden units of a block, as a multiple of the width.
      kernel: taps of all convolutions, an odd number.
      rate: samples a second.
      size: samples of a frame; F = size / 2 + 1.
      window: of Hann's, within a frame.
      hop: samples from a frame to the next.
      coupled: whether the streams add each other; otherwise neither knows of the other.
      amplitude, phase, spectrum, consistency: weights of the losses: squares of log amplitudes,
        angles (`spectrum.phase_losses`), squares of complex numbers, and of how far these are from
        a sound's.
      discriminators: judges that are trained beside the model, and what it then lowers too: the
        other side of a game (`Model.rivals`). None for none.
    """

    width: Size = 512
    rounds: Size = 8
    expansion: Size = 3
    kernel: Size = 7
    rate: Size = 16000
    size: Size = 1024
    window: Size = 320
    hop: Size = 80
    coupled: bool = True
    amplitude: NotNegative = 45.0
    phase: NotNegative = 100.0
    spectrum: NotNegative = 90.0
    consistency: NotNegative = 90.0
    discriminators: Discriminators | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frames("BandExtender", self.size, self.window, self.hop)
        if self.kernel % 2 == 0:
            raise UserError(f"BandExtender.kernel={self.kernel}: give an odd number of taps")

    @property
    def bins(self) -> int:
        """F."""
        return self.size // 2 + 1

    @property
    def branches(self) -> int:
        """Amplitudes and phases."""
        return 2

    @property
    def rivals(self) -> tuple[str, ...]:
        """The discriminators, where there are any."""
        return () if self.discriminators is None else (RIVALS,)

    @property
    def hann(self) -> np.ndarray:
        """The window of both transforms."""
        return spectra.hann(self.window)

    def table(self) -> Table:
        """enter, rounds, leave: of both streams; amplitude and phase: the heads."""
        width, bins = self.width, self.bins
        found = {
            "enter": {**_map((self.kernel,), bins, width), **_norm(width)},
            "rounds": self._block(),
            "leave": _norm(width),
            "amplitude": _head(width, bins),
            "phase": _head(width, 2 * bins),
        }
        if self.discriminators is not None:
            found[RIVALS] = self.discriminators.table()
        return found

    def _block(self) -> Table:
        width, hidden, depth = self.width, self.expansion * self.width, (self.rounds,)
        gamma = _each((width,), _constant(1 / self.rounds), depth)
        return {
            "depthwise": {
                "weight": _each((self.kernel, width), normal(0.02), depth, decay=True),
                "bias": _each((width,), zeros, depth),
            },
            "norm": _norm(width, depth),
            "in": _map((), width, hidden, depth),
            "out": _map((), hidden, width, depth),
            "gamma": gamma,
        }

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """audio and wide [rows, samples], weights [rows]."""
        return {"audio": (BATCH, None), "wide": (BATCH, None), "weights": (BATCH,)}

    def fitted(self, data: Dataset) -> BandExtender:
        """Itself.

        Raises:
          UserError: another rate; a number of samples that is no multiple of the hop, or too small.
        """
        samples = data.sizes.get("samples", 0)
        check_rows(data.config.name, data.sizes, self.rate, self.size, self.hop)
        if self.discriminators is not None and samples:
            self.discriminators.check_samples(samples)
        if 0 < samples <= self.size:
            raise UserError(
                f"rows of {samples} samples: distances are told in frames of {2 * self.size}, "
                f"twice model.size: give more than {self.size}"
            )
        return self

    def spectrum_of(self, audio: Float[Array, "B N"]) -> Complex[Array, "B T F"]:
        """Frames around every hop."""
        return spectra.stft(audio, self.hann, hop=self.hop, size=self.size)

    def sound_of(self, spectrum: Complex[Array, "B T F"]) -> Float[Array, "B N"]:
        """The inverse of `spectrum_of`."""
        return spectra.istft(spectrum, self.hann, hop=self.hop, size=self.size)

    def parts_of(self, audio: Float[Array, "B N"]) -> tuple[Array, Array]:
        """Log amplitudes and phases, [B, T, F] each."""
        found = self.spectrum_of(audio)
        return spectra.log_amplitude(found, FLOOR), spectra.phases_of(found)

    def __call__(
        self, params: Params, audio: Float[Array, "B N"], axes: Axes = WHOLE
    ) -> SpectralSound:
        """What is made of a narrow band."""
        return self.extended(params, *self.parts_of(audio), axes)

    def extended(
        self,
        params: Params,
        log_amplitude: Float[Array, "B T F"],
        phase: Float[Array, "B T F"],
        axes: Axes = WHOLE,
    ) -> SpectralSound:
        """The same of log amplitudes and phases."""
        first, second = self.streams(params, jnp.stack([log_amplitude, phase]), axes)
        logs = log_amplitude + _applied(params["amplitude"], first)
        angles = spectra.phase_of(*jnp.split(_applied(params["phase"], second), 2, axis=-1))
        return SpectralSound(logs, angles, self.sound_of(spectra.polar(logs, angles)))

    def streams(
        self, params: Params, x: Float[Array, "2 B T F"], axes: Axes = WHOLE
    ) -> Float[Array, "2 B T D"]:
        """Both streams, as the heads read them; on two devices of `stream` one on each."""
        axis = axes.of("stream")
        x = _of_each(self._entered, params["enter"], collectives.own_shard(x, axis, 0))

        def one(x: Array, own: Params) -> tuple[Array, None]:
            return _of_each(self._through, own, coupled(x, axes) if self.coupled else x), None

        x, _ = lax.scan(one, x, params["rounds"])
        x = _of_each(_normed, params["leave"], x)
        return collectives.all_gather(x, axis, 0)

    def _entered(self, params: Params, x: Float[Array, "B T F"]) -> Float[Array, "B T D"]:
        beside = self.kernel // 2
        x = convolve(x, params["weight"], params["bias"], pads=[(beside, beside)])
        return _normed(params, x)

    def _through(self, params: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """x + gamma W2 gelu(W1 norm(depthwise x)): a block of ConvNeXt (arXiv 2201.03545)."""
        beside, own = self.kernel // 2, params["depthwise"]
        padded = jnp.pad(x, ((0, 0), (beside, beside), (0, 0)))
        shifted = [padded[:, k : k + x.shape[1]] * own["weight"][k] for k in range(self.kernel)]
        y = sum(shifted[1:], shifted[0]) + own["bias"]
        y = gelu(_applied(params["in"], _normed(params["norm"], y)))
        return x + params["gamma"] * _applied(params["out"], y)

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], float, Measures]:
        """The weighted sum of the losses, with those of judges where there are any.

        Told are the distance of log spectra (`spectrum.log_spectral_distance`, in frames of twice
        the size), and the ratio of signal to error in decibels; with judges, the losses of both
        sides of the game.
        """
        wide, weights = batch["wide"], batch["weights"]
        made = self(params, batch["audio"], axes)
        each = {
            "lsd": spectra.log_spectral_distance(made.audio, wide, 2 * self.size, self.size // 2),
            "snr": signal_to_error(made.audio, wide),
        }
        losses = sum(self.loss_parts(made, wide).values(), jnp.zeros(len(wide)))
        if self.discriminators is not None:
            found = self.discriminators.verdicts(params[RIVALS], wide, made.audio)
            losses = losses + found.made + found.features + found.judges
            each |= {"fooling": found.made, "features": found.features, "judging": found.judges}
        told = {name: (jnp.sum(x * weights), jnp.sum(weights)) for name, x in each.items()}
        return jnp.sum(losses * weights), 0.0, told

    def loss_parts(self, made: SpectralSound, wide: Float[Array, "B N"]) -> dict[str, Array]:
        """Each loss [B], weighed: "amplitude", "phase", "spectrum", "consistency"."""
        logs, phases = self.parts_of(wide)
        own = spectra.polar(made.log_amplitude, made.phase)
        again = spectra.polar(*self.parts_of(made.audio))
        angles = spectra.phase_losses(made.phase, phases)
        return {
            "amplitude": self.amplitude * _squares(made.log_amplitude - logs),
            "phase": self.phase * sum(angles, jnp.zeros(())),
            "spectrum": self.spectrum * _squares(own - spectra.polar(logs, phases)) / 2,
            "consistency": self.consistency * _squares(own - again) / 2,
        }


def _squares(x: Array) -> Float[Array, B]:
    """The mean over frames and bins."""
    return jnp.mean(jnp.square(x.real) + jnp.square(x.imag), (-2, -1))


def signal_to_error(made: Float[Array, "B N"], wide: Float[Array, "B N"]) -> Float[Array, B]:
    """10 log10 of the power of the wide sound over that of the difference."""
    error = jnp.sum(jnp.square(made - wide), 1)
    return 10 * jnp.log10((jnp.sum(jnp.square(wide), 1) + 1e-12) / (error + 1e-12))


def _of_each(function: Callable[[Params, Array], Array], params: Any, x: Array) -> Array:
    """Of each stream that is here, with its own parameters: one after the other."""
    streams = (jax.tree.map(operator.itemgetter(i), (params, x)) for i in range(len(x)))
    return jnp.stack([function(own, stream) for own, stream in streams])


@by_rows
def _applied(params: Params, x: Array) -> Array:
    return linear(x, params["weight"], params["bias"])


def _normed(params: Params, x: Array) -> Array:
    return layer_norm(x, params["scale"], params["shift"], EPS)


def _each(
    shape: tuple[int, ...], init: Initializer, depth: tuple[int, ...] = (), decay: bool = False
) -> Param:
    """A parameter of both streams, [2, ...], or of all rounds, [R, 2, ...]."""
    axes = (*(None for _ in depth), "stream", *(None for _ in shape))
    return Param((*depth, 2, *shape), axes, init, decay=decay)


def _map(taps: tuple[int, ...], inputs: int, outputs: int, depth: tuple[int, ...] = ()) -> Table:
    # The released code truncates at +-2, a hundred deviations: that is, not at all.
    return {
        "weight": _each((*taps, inputs, outputs), normal(0.02), depth, decay=True),
        "bias": _each((outputs,), zeros, depth),
    }


def _norm(width: int, depth: tuple[int, ...] = ()) -> Table:
    return {"scale": _each((width,), ones, depth), "shift": _each((width,), zeros, depth)}


def _head(inputs: int, outputs: int) -> Table:
    """Begun as PyTorch begins a linear map, as in the released code."""
    return {
        "weight": Param((inputs, outputs), (None, None), fan_in(inputs)),
        "bias": Param((outputs,), (None,), fan_in(inputs), decay=False),
    }


def _constant(value: float) -> Initializer:
    return lambda key, shape: jnp.full(shape, value)
