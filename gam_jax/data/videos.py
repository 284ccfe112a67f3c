"""Videos of two numbers a frame: a hidden colour that stays, and a path that swings."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from gam_jax.data.drawn import Drawn
from sharding.bounds import Few, NotNegative, Size

SWING = (1.6, -0.8)
"""Of the path: x[t] = 1.6 x[t - 1] - 0.8 x[t - 2] + noise, a period of about 14 frames."""


@dataclasses.dataclass(frozen=True)
class Videos(Drawn):
    """Frames [N, 2] of variance about 1, with the noise and the time of a lesson in denoising.

    The first number of each frame is the video's colour, even in +-sqrt(3), plus noise of its own.
    The second one is a path of order two, from its stationary law. Noise and time are drawn with
    the row, so that a validation is the same on every mesh.

    Attributes:
      name: `videos`.
      frames: N.
      flicker: deviation of the noise on the colour.
      scored: validation rows.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("videos",)

    name: str = "videos"
    frames: Size = 128
    flicker: NotNegative = 0.2
    scored: Few = 64

    @property
    def unit(self) -> tuple[str, int]:
        """Frames."""
        return "frames", self.frames

    def sizes(self) -> dict[str, int]:
        """frames, and the 2 channels."""
        return {"frames": self.frames, "channels": 2}

    def row(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """frames and noise float32 [N, 2], time float32 [] in 0 .. 1."""
        draw = np.random.default_rng((seed, index))
        colour = math.sqrt(3) * draw.uniform(-1, 1)
        first = colour + self.flicker * draw.normal(size=self.frames)
        path = np.stack([first, self._path(draw)], 1)
        return {
            "frames": path.astype(np.float32),
            "noise": draw.normal(size=(self.frames, 2)).astype(np.float32),
            "time": np.asarray(draw.uniform(), np.float32),
            "weights": np.ones((), np.float32),
        }

    def _path(self, draw: np.random.Generator) -> np.ndarray:
        """From zeros, long enough before the first frame to forget them; unit variance."""
        one, two = SWING
        noise = draw.normal(size=self.frames + 100)
        found = np.zeros(len(noise))
        for t, new in enumerate(noise):
            found[t] = one * found[t - 1] + two * found[t - 2] + new
        variance = (1 - two) / ((1 + two) * ((1 - two) ** 2 - one**2))
        return found[100:] / math.sqrt(variance)
