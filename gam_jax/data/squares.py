"""Clips of a coloured square that moves, each with the words for its colour and its motion."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from gam_jax.data.drawn import TO_SCORE, Drawn
from sharding.bounds import Few, Size
from sharding.errors import UserError

PATHS: Mapping[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "right": lambda s: (0 * s, s),
    "left": lambda s: (0 * s, 1 - s),
    "down": lambda s: (s, 0 * s),
    "up": lambda s: (1 - s, 0 * s),
    "corner": lambda s: (np.clip(2 * s, 0, 1), np.clip(2 * s - 1, 0, 1)),
}
"""Motions: from the share of the clip that has passed to places, down and right, in 0 .. 1."""
SPAN = 0.75
"""How much of the room a motion needs; where it begins in the rest is drawn."""


MOST = 1 << 24
"""Pixels of a row, at most."""


def check_pixels(name: str, pictures: int, side: int) -> None:
    """Raises a UserError for rows of more than `MOST` pixels.

    Args:
      name: of the field that says how many pictures there are.
      pictures: of a row.
      side: pixels of their sides.
    """
    if pictures * side**2 > MOST:
        raise UserError(
            f"data.{name}={pictures}, data.side={side}: give at most {MOST:,} pixels a row"
        )


def hue(number: int, of: int) -> Float[np.ndarray, 3]:
    """One of several colours, evenly around the circle of hues: in -1 .. 1, of mean 0."""
    return np.cos(2 * np.pi * (number / of - np.arange(3) / 3))


@dataclasses.dataclass(frozen=True)
class MovingSquares(Drawn):
    """Clips [N, S, S, 3] in -1 .. 1 of a square in front of grey, 0, for a lesson in denoising.

    Colour, motion and the place where it begins are drawn. A pixel at the square's edge has as
    much of its colour as the square covers. A prompt is two words: the colour's number, and
    behind those of all colours the motion's place in `PATHS`. `other` is the prompt of the same
    motion in another colour. Noise and time are drawn with the row, so that a validation is the
    same on every mesh.

    Attributes:
      name: `squares`.
      frames: N.
      side: S, pixels.
      square: pixels of the square's side.
      colours: how many there are.
      motions: names of `PATHS` that are shown.
      one_clip: whether all training rows are of the first one's clip, with other noise and time;
        validation rows still have all colours and places.
      swapped: whether rows have `other`.
      scored: validation rows.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("squares",)

    name: str = "squares"
    frames: Size = 8
    side: Size = 12
    square: Size = 4
    colours: Size = 6
    motions: tuple[str, ...] = ("right", "left", "down", "up")
    one_clip: bool = False
    swapped: bool = False
    scored: Few = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.motions or not set(self.motions) <= set(PATHS):
            raise UserError(f"data.motions={self.motions}: give some of {', '.join(PATHS)}")
        if self.square >= self.side:
            raise UserError(f"data.square={self.square}: give less than the side of {self.side}")
        check_pixels("frames", self.frames, self.side)
        if self.colours < 2:
            raise UserError(f"data.colours={self.colours}: give at least 2")

    @property
    def unit(self) -> tuple[str, int]:
        """Frames."""
        return "frames", self.frames

    def sizes(self) -> dict[str, int]:
        """pictures of a row, side, channels, and words of prompts."""
        words = self.colours + len(PATHS)
        return {"pictures": self.frames, "side": self.side, "channels": 3, "words": words}

    def word(self, motion: str) -> int:
        """The word for a motion."""
        return self.colours + list(PATHS).index(motion)

    def places(self, motion: str) -> Float[np.ndarray, "N 2"]:
        """Where the square's corner is in each frame, down and right, from where it begins."""
        passed = np.linspace(0, 1, self.frames)
        return SPAN * (self.side - self.square) * np.stack(PATHS[motion](passed), 1)

    def clip(
        self, motion: str, colour: int, start: Float[np.ndarray, 2]
    ) -> Float[np.ndarray, "N S S 3"]:
        """The pictures of a square that begins with its corner at `start`, in pixels."""
        corner = self.places(motion) + start
        low = np.arange(self.side)
        covered = np.minimum(low + 1, corner[..., None] + self.square)
        covered = np.clip(covered - np.maximum(low, corner[..., None]), 0, 1)  # [N, 2, S]
        shape = covered[:, 0, :, None] * covered[:, 1, None, :]
        return shape[..., None] * hue(colour, self.colours)

    def row(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """pictures and noise float32 [N, S, S, 3], prompt int32 [2], time float32 []; other."""
        draw = np.random.default_rng((seed, index))
        whose = np.random.default_rng((seed, 0 if self.one_clip and seed != TO_SCORE else index, 1))
        colour = int(whose.integers(self.colours))
        motion = self.motions[whose.integers(len(self.motions))]
        start = (1 - SPAN) * (self.side - self.square) * whose.uniform(size=2)
        pictures = self.clip(motion, colour, start).astype(np.float32)
        other = (colour + int(draw.integers(1, self.colours))) % self.colours
        word = self.word(motion)
        swapped = {"other": np.asarray([other, word], np.int32)} if self.swapped else {}
        return {
            "pictures": pictures,
            "noise": draw.normal(size=pictures.shape).astype(np.float32),
            "prompt": np.asarray([colour, word], np.int32),
            **swapped,
            "time": np.asarray(draw.uniform(), np.float32),
            "weights": np.ones((), np.float32),
        }
