"""Textures with a square hole."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from gam_jax.data.drawn import TO_SCORE, Drawn
from sharding.bounds import Count, Few, Size
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Holes(Drawn):
    """Grey pictures [S, S, 1] in -1 .. 1, each a sum of two gratings, and where they are known.

    A grating is a sine of any direction and phase, with a period of 5 to 16 pixels; a picture's
    largest value is 0.9. A square of `hole` pixels, anywhere inside, is not known. `coarse` is 1
    for the first training row and falls to 0 with row `fade`; validation rows have 0, so that the
    loss of a validation is of what is used, however long the training was.

    Attributes:
      name: `holes`.
      side: S.
      hole: pixels of the hole's side.
      fade: training rows over which `coarse` falls; 0 keeps it 1 in training.
      scored: validation rows.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("holes",)

    name: str = "holes"
    side: Size = 32
    hole: Size = 10
    fade: Count = 0
    scored: Few = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hole >= self.side:
            raise UserError(f"data.hole={self.hole}: give less than the side of {self.side}")

    def sizes(self) -> dict[str, int]:
        """side, and the one channel."""
        return {"side": self.side, "channels": 1}

    def row(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """images float32 [S, S, 1], known float32 [S, S, 1], coarse float32 []."""
        draw, places = np.random.default_rng((seed, index)), np.arange(self.side)
        picture = np.zeros((self.side, self.side))
        for _ in range(2):
            angle, turn = draw.uniform(0, math.pi), draw.uniform(0, 2 * math.pi)
            rate = 2 * math.pi / (5 * (16 / 5) ** draw.uniform())
            along = math.cos(angle) * places[:, None] + math.sin(angle) * places
            picture += draw.uniform(0.3, 1) * np.sin(rate * along + turn)
        picture *= 0.9 / np.max(np.abs(picture))
        known = np.ones((self.side, self.side, 1), np.float32)
        top, left = draw.integers(0, self.side - self.hole + 1, 2)
        known[top : top + self.hole, left : left + self.hole] = 0
        faded = max(0.0, 1 - index / self.fade) if self.fade else 1.0
        coarse = 0.0 if seed == TO_SCORE else faded
        return {
            "images": picture[..., None].astype(np.float32),
            "known": known,
            "coarse": np.asarray(coarse, np.float32),
            "weights": np.ones((), np.float32),
        }
