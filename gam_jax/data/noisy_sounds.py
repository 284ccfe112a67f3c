"""Sounds in noise, with the sound itself beside."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import numpy as np

from gam_jax.data.signals import TONE, Sounds
from sharding.bounds import Bound


@dataclasses.dataclass(frozen=True)
class NoisySounds(Sounds):
    """`Sounds`, and white noise on them of a given strength.

    Attributes:
      name: `noisy_sounds`.
      ratio: of the sound's power over that of the noise, in decibels, -200 to 200.
      kinds: of sounds; tones alone where nothing is said.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("noisy_sounds",)

    name: str = "noisy_sounds"
    kinds: tuple[str, ...] = (TONE,)
    ratio: Annotated[float, Bound(-200, 200)] = 5.0

    def row(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """audio and clean float32 [samples]: with the noise and without."""
        found = super().row(seed, index)
        clean = found["audio"]
        noise = np.random.default_rng((seed, index, 1)).normal(size=len(clean))
        power = np.mean(clean.astype(np.float64) ** 2) / 10 ** (self.ratio / 10)
        noisy = clean + np.sqrt(power / np.mean(noise**2)) * noise
        return {**found, "clean": clean, "audio": noisy.astype(np.float32)}
