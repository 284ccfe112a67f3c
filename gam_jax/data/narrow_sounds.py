"""Sounds of a narrow band, with the whole sound beside."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Annotated, ClassVar

import numpy as np

from gam_jax.data.signals import TONE, Sounds
from sharding.bounds import Bound

CROSSINGS = 6
"""Of the sinc's zeros that its window leaves on each side."""
ROLLOFF = 0.99
"""The cut-off, as a part of half the lower rate."""


@dataclasses.dataclass(frozen=True)
class NarrowSounds(Sounds):
    """`Sounds`, and what is left of them after a lower rate: down by a factor, and up again.

    Both ways by a sinc under Hann's window, with zeros before and after the sound, which is how
    `torchaudio.functional.resample` has it.

    Attributes:
      name: `narrow_sounds`.
      factor: of the rate over the lower one, 2 to 64.
      kinds: of sounds; tones alone where nothing is said.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("narrow_sounds",)

    name: str = "narrow_sounds"
    kinds: tuple[str, ...] = (TONE,)
    factor: Annotated[int, Bound(2, 64)] = 4

    def row(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """audio and wide float32 [samples]: of the narrow band, and of the whole."""
        found = super().row(seed, index)
        wide = found["audio"]
        return {**found, "wide": wide, "audio": narrowed(wide, self.factor).astype(np.float32)}


def narrowed(x: np.ndarray, factor: int) -> np.ndarray:
    """x [N] at a rate lower by a factor, and back at its own: float64 [N]."""
    taps = _sinc(factor)
    reach = len(taps) // 2
    low = np.convolve(x.astype(np.float64), taps)[reach : reach + len(x)][::factor]
    spread = np.zeros(len(x))
    spread[::factor] = low * factor
    return np.convolve(spread, taps)[reach : reach + len(x)]


@functools.cache
def _sinc(factor: int) -> np.ndarray:
    """The low-pass filter, symmetric around its middle tap; its taps sum to about 1."""
    reach = math.ceil(CROSSINGS * factor / ROLLOFF)
    turns = np.arange(-reach, reach + 1) * ROLLOFF / factor
    window = np.cos(np.clip(turns / CROSSINGS, -1, 1) * math.pi / 2) ** 2
    return np.sinc(turns) * window * ROLLOFF / factor
