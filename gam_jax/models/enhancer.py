"""MP-SENet: sounds out of noise by magnitudes and phases, each from a decoder of its own.

Source: arXiv 2308.08926 and its released code, without the discriminator.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gam_jax.layers.base import WHOLE
from gam_jax.layers.branches import branches
from gam_jax.layers.recurrent import orthogonal_gates
from gam_jax.models.base import BATCH, Batch, Measures, Model
from gam_jax.ops import spectrum as spectra
from gam_jax.ops.convolution import convolve
from gam_jax.ops.norm import layer_norm
from gam_jax.ops.recurrence import gru_step
from gam_jax.ops.sources import attend_source
from gam_jax.params import Param, Params, Table, fan_in, ones, zeros
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Size
from sharding.errors import UserError

COMPRESSED = 0.3
"""The power to which magnitudes are raised."""
DILATIONS = (1, 2, 4, 8)
"""In time, of the four convolutions of a dense block."""
WEIGHTS = {"magnitude": 0.9, "phase": 0.3, "complex": 0.2, "consistency": 0.2, "time": 0.2}
"""Of the losses, as released; that of the discriminator is 0.05 and is not here."""


class Enhanced(NamedTuple):
    """What the model makes of noisy sounds.

    Attributes:
      magnitude: compressed, [B, T, F].
      phase: [B, T, F].
      audio: [B, N].
    """

    magnitude: Array
    phase: Array
    audio: Array


@dataclasses.dataclass(frozen=True)
class Enhancer(Model):
    """Clean sounds [B, N] from noisy ones, in short-time spectra of F bins and T frames.

    An encoder of dense convolutions halves the bins; `blocks` blocks attend and run a GRU both
    ways along time, then along frequency; one decoder gives a mask of 0 .. 2 for the magnitudes,
    another a pair whose angle is the phase. Both run at once where `stream` is 2. Where `seq` is
    split the blocks take turns: along time a device has all frames of some bins, along frequency
    all bins of some frames, with an all-to-all between; encoder and decoders see the whole.

    Along time means along time: the released code mixes rows of the batch there, because it gives
    batches to modules that expect time first. Here a row does not depend on the others.

    Attributes:
      width: channels, a multiple of the heads.
      blocks: of time and frequency.
      heads: of each attention.
      size: samples of a frame and of Hann's window; F = size / 2 + 1, with size / 4 whole.
      hop: samples from a frame to the next.
      phases: whether phases are predicted; otherwise they stay as noisy as they are.
    """

    width: Size = 64
    blocks: Size = 4
    heads: Size = 4
    size: Size = 400
    hop: Size = 100
    phases: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads or self.size % 4 or self.hop > self.size // 2:
            raise UserError(
                f"Enhancer: width {self.width} wants heads that divide it ({self.heads}), size "
                f"{self.size} a multiple of 4, and hop {self.hop} at most half of it"
            )

    @property
    def branches(self) -> int:
        """Magnitudes and phases."""
        return 2 if self.phases else 1

    @property
    def over_seq(self) -> bool:
        """Blocks along time have some of the bins on each device, those along frequency frames."""
        return True

    @property
    def bins(self) -> int:
        """F."""
        return self.size // 2 + 1

    @functools.cached_property
    def window(self) -> np.ndarray:
        """Hann's."""
        return spectra.hann(self.size)

    def table(self) -> Table:
        """encoder, time_0, frequency_0 ..., magnitude, phase."""
        width = self.width
        encoder = {
            "in": _unit(1, 1, 2, width),
            "dense": self._dense(),
            "half": _unit(1, 3, width, width),
        }
        found: dict[str, Any] = {"encoder": encoder}
        for number in range(self.blocks):
            found |= {f"{axis}_{number}": self._block() for axis in ("time", "frequency")}
        double = {"dense": self._dense(), "double": _unit(1, 3, width, 2 * width, width)}
        slope = Param((self.bins,), (None,), ones, decay=False)
        found["magnitude"] = {**double, "mask": _conv(1, 2, width, 1), "slope": slope}
        if self.phases:
            pair = {"real": _conv(1, 2, width, 1), "imaginary": _conv(1, 2, width, 1)}
            found["phase"] = {**double, **pair}
        return found

    def _dense(self) -> Table:
        width = self.width
        return {f"unit_{i}": _unit(2, 3, (i + 1) * width, width) for i in range(len(DILATIONS))}

    def _block(self) -> Table:
        width, hidden = self.width, 2 * self.width
        gru = {
            "w_in": Param((width, 3, hidden), (None, None, None), fan_in(hidden)),
            "w_state": Param((hidden, 3, hidden), (None, None, None), orthogonal_gates),
            "bias": Param((3, hidden), (None, None), fan_in(hidden), decay=False),
            "state_bias": Param((3, hidden), (None, None), fan_in(hidden), decay=False),
        }
        return {
            "norm_0": _norm(width),
            "attention": {"in": _affine(width, 3 * width), "out": _affine(width, width)},
            "norm_1": _norm(width),
            "forward": gru,
            "backward": gru,
            "out": _affine(2 * hidden, width),
            "norm_2": _norm(width),
        }

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """audio and clean [rows, samples], weights [rows]."""
        return {"audio": (BATCH, None), "clean": (BATCH, None), "weights": (BATCH,)}

    def spectrum_of(self, audio: Float[Array, "B N"]) -> tuple[Array, Array]:
        """Compressed magnitudes and phases, [B, T, F] each."""
        found = spectra.stft(audio, self.window, hop=self.hop)
        square = jnp.square(jnp.real(found)) + jnp.square(jnp.imag(found))
        magnitude = (square + 1e-9) ** (COMPRESSED / 2)
        return magnitude, spectra.phases_of(found)

    def audio_of(self, magnitude: Array, phase: Array, samples: int) -> Float[Array, "B N"]:
        """The sounds of compressed magnitudes and phases."""
        plain = magnitude ** (1 / COMPRESSED)
        found = lax.complex(plain * jnp.cos(phase), plain * jnp.sin(phase))
        return spectra.istft(found, self.window, hop=self.hop, length=samples)

    def __call__(self, params: Params, audio: Float[Array, "B N"], axes: Axes = WHOLE) -> Enhanced:
        """What is made of noisy sounds, whose own strength plays no part."""
        scale = jnp.sqrt(jnp.mean(jnp.square(audio), 1, keepdims=True) + 1e-12)
        noisy, phase = self.spectrum_of(audio / scale)
        x = self._encoded(params, jnp.stack([noisy, phase], -1), axes)
        if self.phases:
            mask, phase = branches(self._mask, self._phase, (params, x), axes)
        else:
            mask = self._mask((params, x))
        magnitude = mask * noisy
        made = self.audio_of(magnitude, phase, audio.shape[1])
        return Enhanced(magnitude, phase, made * scale)

    def _encoded(
        self, params: Params, x: Float[Array, "B T F 2"], axes: Axes
    ) -> Float[Array, "B T G C"]:
        own = params["encoder"]
        x = _dense(own["dense"], _run(own["in"], x))
        return self._turns(params, _run(own["half"], x, stride=2, beside=1), axes.seq)

    def _turns(self, params: Params, x: Array, axis: str | None) -> Float[Array, "B T G C"]:
        """Along time, then along frequency: each device has some bins, then some frames."""
        frames, bins = x.shape[1:3]
        x = collectives.own_shard(collectives.filled(x, axis, 2), axis, 2)
        for number in range(self.blocks):
            if number:
                x = collectives.turned(x, axis, 2, 1, frames)
            y = self._mixed_rows(params[f"time_{number}"], jnp.swapaxes(x, 1, 2))
            x = collectives.turned(x + jnp.swapaxes(y, 1, 2), axis, 1, 2, bins)
            x = x + self._mixed_rows(params[f"frequency_{number}"], x)
        if axis is None:
            return x
        return lax.all_gather(x, axis, axis=1, tiled=True)[:, :frames]

    def _mixed_rows(self, params: Params, x: Float[Array, "B R S C"]) -> Float[Array, "B R S C"]:
        return self._mixed(params, x.reshape(-1, *x.shape[2:])).reshape(x.shape)

    def _mixed(self, params: Params, x: Float[Array, "R S C"]) -> Float[Array, "R S C"]:
        rows, places, width = x.shape
        heads = (rows, places, 3, self.heads, width // self.heads)
        given = _applied(params["attention"]["in"], _normed(params["norm_0"], x)).reshape(heads)
        mixed, _ = attend_source(given[:, :, 0], (given[:, :, 1], given[:, :, 2]))
        x = x + _applied(params["attention"]["out"], mixed.reshape(x.shape))
        given = _normed(params["norm_1"], x)
        both = _gru(params["forward"], given), _gru(params["backward"], given[:, ::-1])[:, ::-1]
        bent = jax.nn.leaky_relu(jnp.concatenate(both, -1), 0.01)
        return _normed(params["norm_2"], x + _applied(params["out"], bent))

    def _doubled(self, params: Params, x: Array) -> Float[Array, "B T F1 C"]:
        """Twice the bins: a convolution gives two for each, which stand side by side."""
        x, own = _dense(params["dense"], x), params["double"]
        x = convolve(x, own["conv"]["weight"], own["conv"]["bias"], pads=((0, 0), (1, 1)))
        x = x.reshape(*x.shape[:2], 2 * x.shape[2], -1)
        return _bent(own, x)

    def _mask(self, given: tuple[Params, Array]) -> Float[Array, "B T F"]:
        own = given[0]["magnitude"]
        x = _last(own["mask"], self._doubled(own, given[1]))
        return 2 * jax.nn.sigmoid(own["slope"] * x)

    def _phase(self, given: tuple[Params, Array]) -> Float[Array, "B T F"]:
        own = given[0]["phase"]
        x = self._doubled(own, given[1])
        return spectra.phase_of(_last(own["real"], x), _last(own["imaginary"], x))

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], float, Measures]:
        """The weighted sum of the released losses without the discriminator's.

        Told are the ratio of signal to distortion, of any scale (SI-SDR), in decibels, and the
        error of phases weighed by the clean magnitudes, in radians.
        """
        clean, weights = batch["clean"], batch["weights"]
        count = jnp.sum(weights)
        made = self(params, batch["audio"], axes)
        scale = jnp.sqrt(jnp.mean(jnp.square(batch["audio"]), 1, keepdims=True) + 1e-12)
        magnitude, phase = self.spectrum_of(clean / scale)

        def pair(magnitude: Array, phase: Array) -> Array:
            return jnp.stack([magnitude * jnp.cos(phase), magnitude * jnp.sin(phase)])

        own, wanted = pair(made.magnitude, made.phase), pair(magnitude, phase)
        again = pair(*self.spectrum_of(made.audio / scale))
        parts = {
            "magnitude": jnp.mean(jnp.square(made.magnitude - magnitude), (1, 2)),
            "complex": jnp.mean(jnp.square(own - wanted), (0, 2, 3)),
            "consistency": jnp.mean(jnp.square(own - again), (0, 2, 3)),
            "time": jnp.mean(jnp.abs(made.audio - clean) / scale, 1),
        }
        if self.phases:
            parts["phase"] = functools.reduce(jnp.add, spectra.phase_losses(made.phase, phase))
        losses = sum((WEIGHTS[name] * part for name, part in parts.items()), jnp.zeros(len(clean)))
        off = spectra.anti_wrapped(made.phase - phase)
        error = jnp.sum(magnitude * off, (1, 2)) / jnp.sum(magnitude, (1, 2))
        # Devices along `seq` hold equal sums here, of which each gives a share.
        weights = weights / collectives.axis_size(axes.seq)
        told = {
            "si_sdr": (jnp.sum(weights * si_sdr(made.audio, clean)), count),
            "phase_error": (jnp.sum(weights * error), count),
        }
        return jnp.sum(weights * losses), 0.0, told


def si_sdr(made: Float[Array, "B N"], clean: Float[Array, "B N"]) -> Float[Array, B]:
    """10 log10 of the power of the part of `made` along `clean` over that of the rest."""
    share = jnp.sum(made * clean, 1) / (jnp.sum(clean * clean, 1) + 1e-12)
    along = share[:, None] * clean
    rest = jnp.sum(jnp.square(made - along), 1)
    return 10 * jnp.log10((jnp.sum(jnp.square(along), 1) + 1e-12) / (rest + 1e-12))


def _conv(rows: int, columns: int, inputs: int, outputs: int) -> Table:
    start = fan_in(rows * columns * inputs)
    return {
        "weight": Param((rows, columns, inputs, outputs), (None,) * 4, start),
        "bias": Param((outputs,), (None,), start, decay=False),
    }


def _unit(rows: int, columns: int, inputs: int, outputs: int, normed: int = 0) -> Table:
    """A convolution, an instance norm and a PReLU, of `normed` channels or of all."""
    channels = normed or outputs
    return {
        "conv": _conv(rows, columns, inputs, outputs),
        "norm": _norm(channels),
        "slope": Param((channels,), (None,), _quarter, decay=False),
    }


def _quarter(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.full(shape, 0.25)


def _norm(width: int) -> Table:
    return {
        "scale": Param((width,), (None,), ones, decay=False),
        "bias": Param((width,), (None,), zeros, decay=False),
    }


def _affine(inputs: int, outputs: int) -> Table:
    return {
        "weight": Param((inputs, outputs), (None, None), fan_in(inputs)),
        "bias": Param((outputs,), (None,), zeros, decay=False),
    }


def _applied(params: Params, x: Array) -> Array:
    return x @ params["weight"] + params["bias"]


def _normed(params: Params, x: Array) -> Array:
    return layer_norm(x, params["scale"], params["bias"])


def _bent(params: Params, x: Float[Array, "B T F C"]) -> Float[Array, "B T F C"]:
    """Each channel of a row normalised over frames and bins, then a slope of its own below 0."""
    mean = jnp.mean(x, (1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), (1, 2), keepdims=True)
    x = (x - mean) * lax.rsqrt(variance + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    return jnp.where(x >= 0, x, params["slope"] * x)


def _run(params: Params, x: Array, dilation: int = 1, stride: int = 1, beside: int = 0) -> Array:
    """A unit: zeros before the frames alone, as far as its taps reach, and beside the bins."""
    conv = params["conv"]
    before = (conv["weight"].shape[0] - 1) * dilation
    y = convolve(
        x,
        conv["weight"],
        conv["bias"],
        stride=(1, stride),
        dilation=(dilation, 1),
        pads=((before, 0), (beside, beside)),
    )
    return _bent(params, y)


def _dense(params: Params, x: Array) -> Array:
    """Each unit reads what all before it gave, and the input."""
    seen = x
    for number, dilation in enumerate(DILATIONS):
        x = _run(params[f"unit_{number}"], seen, dilation, beside=1)
        seen = jnp.concatenate([x, seen], -1)
    return x


def _last(params: Params, x: Array) -> Float[Array, "B T F"]:
    return convolve(x, params["weight"], params["bias"], pads=((0, 0), (0, 0)))[..., 0]


def _gru(params: Params, x: Float[Array, "R S C"]) -> Float[Array, "R S H"]:
    """States of a GRU as cuDNN and PyTorch have it, from zeros."""
    given = jnp.einsum("rsc,cgh->srgh", x, params["w_in"]) + params["bias"]

    def step(state: Array, given: Array) -> tuple[Array, Array]:
        own = jnp.einsum("rh,hgk->rgk", state, params["w_state"]) + params["state_bias"]
        state = gru_step(state, given, lambda _: own[:, :2], lambda _: own[:, 2:], False)
        return state, state

    start = jnp.zeros_like(given[0, :, 0])
    return jnp.swapaxes(lax.scan(step, start, given)[1], 0, 1)
