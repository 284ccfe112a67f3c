"""Short-time spectra and their inverse, phases, and losses that do not see turns of 2 pi.

Sources: APNet (arXiv 2305.07952), whose predicted spectra these functions turn into sound; edges of
a signal are those of `torch.stft` and `torch.istft`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from sharding import collectives
from sharding.errors import UserError

SMALLEST = 1e-8
"""Length of a pair (real, imaginary) below which the gradient of its phase no longer grows."""
ENVELOPE = 1e-8
"""Summed squares of windows below which a sample is not told by its frames."""


def hann(size: int) -> np.ndarray:
    """The periodic Hann window, float64 [size]."""
    return 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(size) / size)


def frames_of(samples: int, size: int, hop: int, center: bool = True) -> int:
    """How many frames `stft` makes of so many samples."""
    return 1 + (samples + (size // 2 * 2 if center else 0) - size) // hop


def stft(
    x: Float[Array, "B N"],
    window: np.ndarray,
    *,
    hop: int,
    size: int = 0,
    center: bool = True,
) -> Complex[Array, "B T F"]:
    """S[t, f] = sum_n window[n] x[t hop + n] exp(-2 pi i f n / size), f = 0 .. size / 2.

    Args:
      x: signals.
      window: one weight a sample of a frame, known when the program is made; zeros are added on
        both sides up to `size`.
      hop: samples from a frame to the next.
      size: samples of a frame; as many as the window has if 0.
      center: whether frame t stands around sample t hop: the signal is reflected at both ends by
        size / 2 samples. Otherwise it begins at that sample.

    Returns:
      T = 1 + N // hop frames of size // 2 + 1 bins if centred and `size` is even, see `frames_of`.

    Raises:
      UserError: a window longer than a frame, a hop below 1, or a signal that is too short.
    """
    size = _checked("stft", window, hop, size)
    if x.ndim != 2:
        raise UserError(f"stft: x {x.shape} is not [B, N]")
    edge = size // 2 if center else 0
    if x.shape[1] <= edge or x.shape[1] + 2 * edge < size:
        raise UserError(
            f"stft: a signal of {x.shape[1]} samples is too short for frames of {size}: give more "
            f"than {max(edge, size - 2 * edge - 1)}"
        )
    if center:
        x = jnp.pad(x, ((0, 0), (edge, edge)), mode="reflect")
    before = (size - len(window)) // 2
    count = frames_of(x.shape[1], size, hop, center=False)
    framed = _framed(x[:, before:], len(window), hop, count) * jnp.asarray(window, x.dtype)
    after = size - len(window) - before
    return jnp.fft.rfft(jnp.pad(framed, ((0, 0), (0, 0), (before, after))))


def istft(
    spectrum: Complex[Array, "B T F"],
    window: np.ndarray,
    *,
    hop: int,
    size: int = 0,
    center: bool = True,
    length: int = 0,
) -> Float[Array, "B N"]:
    """The signal whose frames are nearest to those given: the inverse of `stft`.

    x = sum_t window * frame_t / sum_t window^2, each frame at its place.

    Args:
      spectrum: of T frames.
      window: as in `stft`.
      hop: as in `stft`.
      size: as in `stft`.
      center: as in `stft`; size / 2 samples are cut at each end.
      length: samples of the result, where the frames hold more; all that they hold if 0.

    Raises:
      UserError: bins that do not fit `size`, a length beyond the frames, or windows that leave a
        sample out.
    """
    size = _checked("istft", window, hop, size)
    if spectrum.ndim != 3 or spectrum.shape[2] != size // 2 + 1 or not spectrum.shape[1]:
        raise UserError(
            f"istft: spectrum {spectrum.shape} is not [B, T, {size // 2 + 1}], the bins of frames "
            f"of {size} samples, with T of at least 1"
        )
    count, edge = spectrum.shape[1], size // 2 if center else 0
    whole = size + (count - 1) * hop
    end = edge + length if length else whole - edge
    if not edge < end <= whole:
        raise UserError(
            f"istft: length {length or end - edge} is not from 1 to {whole - edge}, which {count} "
            f"frames of {size} at hop {hop} hold"
        )
    before = (size - len(window)) // 2
    own = slice(before, before + len(window))
    places = (before, whole - before - len(window) - (count - 1) * hop)
    squares = np.zeros(whole - sum(places))
    for frame in range(count):
        squares[frame * hop : frame * hop + len(window)] += np.square(window)
    envelope = np.pad(squares, places)
    if np.min(envelope[edge:end]) < ENVELOPE:
        place = int(np.argmin(envelope[edge:end]))
        raise UserError(
            f"istft: no window tells sample {place}: give a hop below {hop}, a window that is "
            f"longer or not 0 there, or center=True"
        )
    framed = jnp.fft.irfft(spectrum, size)[..., own]
    summed = overlap_add(framed * jnp.asarray(window, framed.dtype), hop)
    summed = jnp.pad(summed, ((0, 0), places))[:, edge:end]
    return summed / jnp.asarray(envelope[edge:end], framed.dtype)


def overlap_add(frames: Float[Array, "B T W"], hop: int) -> Float[Array, "B N"]:
    """Frames summed, each `hop` samples after the one before; N = (T - 1) hop + W.

    It is a sum of W / hop shifted arrays.
    """
    rows, count, width = frames.shape
    blocks = -(-width // hop)
    padded = jnp.pad(frames, ((0, 0), (0, 0), (0, blocks * hop - width)))
    parts = padded.reshape(rows, count, blocks, hop)
    shifted = (
        jnp.pad(parts[:, :, j], ((0, 0), (j, blocks - 1 - j), (0, 0))) for j in range(blocks)
    )
    whole = functools.reduce(jnp.add, shifted).reshape(rows, -1)
    return whole[:, : (count - 1) * hop + width]


def _framed(x: Array, width: int, hop: int, count: int) -> Array:
    """[B, count, width]: what `overlap_add` would put back; slices, so that no index is read."""
    blocks = -(-width // hop)
    needed = (count + blocks - 1) * hop
    x = jnp.pad(x, ((0, 0), (0, max(0, needed - x.shape[1]))))[:, :needed]
    parts = x.reshape(len(x), -1, hop)
    return jnp.concatenate([parts[:, j : j + count] for j in range(blocks)], axis=2)[..., :width]


def _checked(op: str, window: np.ndarray, hop: int, size: int) -> int:
    """The samples of a frame."""
    width = len(window) if np.ndim(window) == 1 else 0
    size = size or width
    if not 1 <= width <= size:
        raise UserError(f"{op}: window {np.shape(window)} is not [W] with W from 1 to size {size}")
    if hop < 1:
        raise UserError(f"{op}: hop {hop} is not at least 1")
    return size


@jax.custom_jvp
def _phase(imaginary: Array, real: Array) -> Array:
    return jnp.arctan2(imaginary, real)


@_phase.defjvp
def _phase_jvp(given: tuple[Array, Array], moved: tuple[Array, Array]) -> tuple[Array, Array]:
    (imaginary, real), (d_imaginary, d_real) = given, moved
    # Divided once by each length, so that no square leaves the numbers that float32 holds.
    length = jnp.maximum(jnp.hypot(imaginary, real), SMALLEST)
    slope = (real / length * d_imaginary - imaginary / length * d_real) / length
    return _phase(imaginary, real), slope


def phase_of(real: Float[Array, ...], imaginary: Float[Array, ...]) -> Float[Array, ...]:
    """The angle of a pair in (-pi, pi], atan2; of two zeros it is 0.

    Its gradient is exact for pairs of a length of `SMALLEST` and above; below it goes to 0 with
    the length, where atan2's would grow without bound and be NaN at 0.
    """
    return _phase(*collectives.vary_alike(imaginary, real))


def phases_of(spectrum: Complex[Array, "... F"]) -> Float[Array, "... F"]:
    """Phases of a signal's frames of an even size, in (-pi, pi].

    The first bin and the last are real numbers, whose phase is 0 or pi. Transforms leave them an
    imaginary part of 0 with one sign or the other, and so pi or -pi; here it is pi on any device.
    """
    last = spectrum.shape[-1] - 1
    within = (np.arange(last + 1) % last > 0) if last else np.zeros(1, bool)
    return phase_of(spectrum.real, jnp.where(within, spectrum.imag, 0.0))


def log_amplitude(spectrum: Complex[Array, ...], floor: float = 1e-5) -> Float[Array, ...]:
    """log(|S| + floor)."""
    return jnp.log(jnp.abs(spectrum) + floor)


def polar(log_amplitudes: Float[Array, ...], phases: Float[Array, ...]) -> Complex[Array, ...]:
    """exp(log amplitude + i phase)."""
    amplitudes = jnp.exp(log_amplitudes)
    return lax.complex(amplitudes * jnp.cos(phases), amplitudes * jnp.sin(phases))


def anti_wrapped(x: Float[Array, ...]) -> Float[Array, ...]:
    """|x - 2 pi round(x / (2 pi))|: how far two angles lie apart whose difference is x, 0 .. pi.

    Source: arXiv 2305.07952, and its successors in this form.
    """
    return jnp.abs(x - 2 * math.pi * lax.stop_gradient(jnp.round(x / (2 * math.pi))))


def negative_cosine(x: Float[Array, ...]) -> Float[Array, ...]:
    """-cos x: what the released code of APNet takes in the place of `anti_wrapped`."""
    return -jnp.cos(x)


class PhaseLosses(NamedTuple):
    """Each [...], the mean over frames and bins.

    Attributes:
      instantaneous: of the phases.
      group_delay: of their differences from a bin to the next.
      angular_frequency: of their differences from a frame to the next.
    """

    instantaneous: Array
    group_delay: Array
    angular_frequency: Array


def phase_losses(
    predicted: Float[Array, "... T F"],
    target: Float[Array, "... T F"],
    measure: Callable[[Array], Array] = anti_wrapped,
    *,
    first: bool = False,
) -> PhaseLosses:
    """The three losses of phases; each is blind to multiples of 2 pi in either.

    Args:
      predicted: phases.
      target: phases.
      measure: of an error that is known up to multiples of 2 pi: `anti_wrapped` or
        `negative_cosine`.
      first: whether the first bin and the first frame, which none stands before, count with their
        own error beside the differences, as in APNet's released code.

    Raises:
      UserError: unlike shapes, or a single frame or bin where differences are asked for.
    """
    if predicted.shape != target.shape or predicted.ndim < 2:
        raise UserError(
            f"phase_losses: predicted {predicted.shape} and target {target.shape} are not both "
            f"[..., T, F]"
        )
    if not first and min(predicted.shape[-2:]) < 2:
        raise UserError(
            f"phase_losses: {predicted.shape[-2:]} frames and bins have no differences: give two "
            f"of each, or first=True"
        )
    error = predicted - target
    delay, frequency = jnp.diff(error, axis=-1), jnp.diff(error, axis=-2)
    if first:
        delay = jnp.concatenate([error[..., :1], delay], axis=-1)
        frequency = jnp.concatenate([error[..., :1, :], frequency], axis=-2)
    return PhaseLosses(*(jnp.mean(measure(x), (-2, -1)) for x in (error, delay, frequency)))


def inconsistency(
    spectrum: Complex[Array, "B T F"], window: np.ndarray, *, hop: int, size: int = 0
) -> Float[Array, B]:
    """Mean of |S - stft(istft(S))|^2 over frames and bins: 0 for the spectrum of a signal.

    The signal is one of (T - 1) hop samples: others are cut by `istft`, and their last frames with
    them.

    Source: arXiv 2305.07952, section on losses.
    """
    back = stft(istft(spectrum, window, hop=hop, size=size), window, hop=hop, size=size)
    off = spectrum - back
    return jnp.mean(jnp.square(off.real) + jnp.square(off.imag), (-2, -1))


def log_spectral_distance(
    made: Float[Array, "B N"], wanted: Float[Array, "B N"], size: int = 2048, hop: int = 512
) -> Float[Array, B]:
    """Mean over frames of the root of the mean over bins of squared differences of log10 |S|^2.

    Powers count as no less than 1e-8. A difference of 1 is 10 dB.

    Source: AP-BWE (arXiv 2401.06387), its released code.

    Args:
      made: sounds.
      wanted: sounds.
      size: samples of a frame and of Hann's window.
      hop: samples from a frame to the next.
    """

    def logs(x: Array) -> Array:
        found = stft(x, hann(size), hop=hop)
        power = jnp.square(found.real) + jnp.square(found.imag)
        return jnp.log10(jnp.maximum(power, 1e-8))

    off = jnp.square(logs(made) - logs(wanted))
    return jnp.mean(jnp.sqrt(jnp.mean(off, -1)), -1)


def mel_filters(
    rate: int, size: int, mels: int, low: float = 0.0, high: float = 0.0
) -> Float[np.ndarray, "F M"]:
    """Triangles on Slaney's scale of pitch, each of unit area in hertz: amplitudes @ filters.

    The scale is linear below 1 kHz, 200/3 Hz a step, and logarithmic above, 27 steps from 1 to
    6.4 kHz.

    Args:
      rate: samples a second.
      size: samples of a frame; F = size // 2 + 1 bins.
      mels: M, how many triangles.
      low: where the first one begins, in hertz.
      high: where the last one ends; rate / 2 if 0.

    Raises:
      UserError: limits that are none.
    """
    high = high or rate / 2
    if not 0 <= low < high <= rate / 2:
        raise UserError(f"mel_filters: {low} to {high} Hz is not within 0 to {rate / 2}")
    step, bend = 200 / 3, 1000.0
    growth = math.log(6.4) / 27

    def pitch(hertz: float) -> float:
        return hertz / step if hertz < bend else bend / step + math.log(hertz / bend) / growth

    steps = np.linspace(pitch(low), pitch(high), mels + 2)
    above = bend * np.exp(growth * np.maximum(steps - bend / step, 0))
    corners = np.where(steps < bend / step, steps * step, above)
    bins = np.linspace(0, rate / 2, size // 2 + 1)
    rising = (bins[:, None] - corners[:-2]) / np.diff(corners)[:-1]
    falling = (corners[2:] - bins[:, None]) / np.diff(corners)[1:]
    triangles = np.maximum(0, np.minimum(rising, falling))
    return triangles * 2 / (corners[2:] - corners[:-2])
