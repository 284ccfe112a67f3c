"""Sounds, and responses of two paths: drawn from a seed, with nothing stored."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from gam_jax.data.drawn import Drawn
from sharding.bounds import Few, Positive, Size
from sharding.errors import UserError

TONE, CHIRP, NOISE = "tone", "chirp", "noise"
KINDS = (TONE, CHIRP, NOISE)
PEAK = 0.9
"""The largest sample of a sound."""


@dataclasses.dataclass(frozen=True)
class Sounds(Drawn):
    """Harmonic tones with vibrato, chirps and coloured noise.

    A tone is a sum of harmonics below half the rate, of amplitudes k^-slope and any phases, over
    a fundamental of 80 to 400 Hz that swings by up to 3 % at 4 to 7 Hz. A chirp glides evenly in
    pitch from one frequency to another. Noise is white, smoothed by one pole, and swells or dies
    away. Each sound has a largest sample of 0.9.

    Attributes:
      name: `sounds`.
      rate: samples a second.
      samples: of a row.
      kinds: of sounds, rows have them in turn: "tone", "chirp", "noise".
      scored: validation rows.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("sounds",)

    name: str = "sounds"
    rate: Size = 8000
    samples: Size = 2048
    kinds: tuple[str, ...] = KINDS
    scored: Few = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise UserError(f"data.kinds={self.kinds!r}: give some of {', '.join(KINDS)}")
        if self.rate < 1000:
            raise UserError(f"data.rate={self.rate}: give at least 1000 samples a second")

    @property
    def unit(self) -> tuple[str, int]:
        """Samples."""
        return "samples", self.samples

    def sizes(self) -> dict[str, int]:
        """samples and rate."""
        return {"samples": self.samples, "rate": self.rate}

    def row(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """audio float32 [samples]."""
        draw = np.random.default_rng((seed, index))
        kind = self.kinds[index % len(self.kinds)]
        made = {TONE: self._tone, CHIRP: self._chirp, NOISE: self._noise}[kind](draw)
        made = made * (PEAK / np.max(np.abs(made)))
        return {"audio": made.astype(np.float32), "weights": np.ones((), np.float32)}

    def _tone(self, draw: np.random.Generator) -> np.ndarray:
        pitch, slope = 80 * 5 ** draw.uniform(), draw.uniform(0.5, 1.5)
        depth, speed = draw.uniform(0, 0.03), draw.uniform(4, 7)
        times = np.arange(self.samples) / self.rate
        swing = depth * np.sin(2 * math.pi * (speed * times + draw.uniform()))
        turns = np.cumsum(pitch * (1 + swing)) / self.rate
        count = max(1, int(self.rate / 2 / (pitch * (1 + depth))))
        numbers = np.arange(1, min(count, 32) + 1)
        phases = 2 * math.pi * (numbers[:, None] * turns + draw.uniform(size=(len(numbers), 1)))
        return (numbers[:, None] ** -slope * np.sin(phases)).sum(0)

    def _chirp(self, draw: np.random.Generator) -> np.ndarray:
        first, last = 60 * (self.rate / 2 * 0.9 / 60) ** draw.uniform(size=2)
        frequencies = first * (last / first) ** np.linspace(0, 1, self.samples)
        turns = np.cumsum(frequencies) / self.rate + draw.uniform()
        return np.sin(2 * math.pi * turns)

    def _noise(self, draw: np.random.Generator) -> np.ndarray:
        white, pole = draw.normal(size=self.samples), draw.uniform(0, 0.95)
        # The filter's answer to a pulse, cut where a float32 no longer sees it.
        taps = pole ** np.arange(min(self.samples, 400))
        coloured = np.convolve(white, taps)[: self.samples]
        return coloured * np.exp(draw.uniform(-3, 3) * np.linspace(0, 1, self.samples))


@dataclasses.dataclass(frozen=True)
class TwoPaths(Drawn):
    """Phases of what two paths make of a pulse: H[k] = sum_i g_i exp(-2 pi i k tau_i / size).

    Gains are even in 0.2 .. 1, delays in 0 .. `longest` samples, frequencies k = 0 .. bins - 1 of
    size = 2 (bins - 1). A model is given both gains and both delays, as a share of the longest.

    Attributes:
      name: `two_paths`.
      bins: frequencies.
      longest: delay, in samples.
      scored: validation rows.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("two_paths",)

    name: str = "two_paths"
    bins: Size = 33
    longest: Positive = 4.0
    scored: Few = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 2:
            raise UserError(f"data.bins={self.bins}: give at least 2")

    def sizes(self) -> dict[str, int]:
        """bins, and the 4 inputs."""
        return {"bins": self.bins, "inputs": 4}

    def row(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """inputs float32 [4], phases float32 [bins]."""
        draw = np.random.default_rng((seed, index))
        gains, shares = draw.uniform(0.2, 1, 2), draw.uniform(0, 1, 2)
        turns = np.arange(self.bins)[:, None] * shares * self.longest / (2 * (self.bins - 1))
        response = (gains * np.exp(-2j * math.pi * turns)).sum(1)
        return {
            "inputs": np.concatenate([gains, shares]).astype(np.float32),
            "phases": np.angle(response).astype(np.float32),
            "weights": np.ones((), np.float32),
        }
