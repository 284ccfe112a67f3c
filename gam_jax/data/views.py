"""Views of coloured boxes from several cameras around them."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from gam_jax.data.drawn import Drawn
from gam_jax.data.squares import check_pixels, hue
from sharding.bounds import Few, Size

SAMPLES = 2
"""Rays through each pixel along both of its sides."""


class Box(NamedTuple):
    """An upright box.

    Attributes:
      place: of its middle on the ground.
      half: half of its two sides.
      turn: angle of its first side.
      low, high: from where to where it stands.
      colours: of its four faces.
    """

    place: Float[np.ndarray, 2]
    half: Float[np.ndarray, 2]
    turn: float
    low: float
    high: float
    colours: Float[np.ndarray, "4 3"]


@dataclasses.dataclass(frozen=True)
class BoxViews(Drawn):
    """Pictures [N, S, S, 3] in -1 .. 1 of the same boxes, before grey, 0, for denoising.

    Cameras are parallel (orthographic), all at elevation 0 and evenly around the upright axis: a
    row of pixels is a height, the same one in every view. Rays say for each pixel where it looks
    from and in which direction, as the camera of the reference sees the world. This is one
    picture more, from between the first two views. Noise and time are drawn with the row.

    Attributes:
      name: `views`.
      views: N.
      side: S, pixels.
      boxes: of a scene.
      guided: whether rows have rays and a reference.
      scored: validation rows.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("views",)

    name: str = "views"
    views: Size = 4
    side: Size = 16
    boxes: Few = 2
    guided: bool = True
    scored: Few = 48

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pixels("views", self.views, self.side)

    @property
    def unit(self) -> tuple[str, int]:
        """Pictures."""
        return "views", self.views

    def sizes(self) -> dict[str, int]:
        """pictures of a row, side, and channels."""
        return {"pictures": self.views, "side": self.side, "channels": 3}

    def row(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """pictures and noise float32 [N, S, S, 3], time float32 [].

        Where guided, rays float32 [N, S, S, 6] and reference float32 [S, S, 3].
        """
        draw = np.random.default_rng((seed, index))
        scene = [self._box(draw) for _ in range(self.boxes)]
        first = draw.uniform(0, 2 * math.pi)
        step = 2 * math.pi / self.views
        angles = first + step * np.arange(self.views)
        seen = first + step / 2
        *views, reference = render(scene, np.append(angles, seen), self.side)
        pictures = np.stack(views)
        found = {
            "pictures": pictures.astype(np.float32),
            "noise": draw.normal(size=pictures.shape).astype(np.float32),
            "time": np.asarray(draw.uniform(), np.float32),
            "weights": np.ones((), np.float32),
        }
        if self.guided:
            rays = np.stack([rays_of(angle - seen, self.side) for angle in angles])
            found["rays"] = rays.astype(np.float32)
            found["reference"] = reference.astype(np.float32)
        return found

    def _box(self, draw: np.random.Generator) -> Box:
        faces = draw.uniform() * 12 + 3 * np.arange(4) + draw.uniform(-1, 1, 4)
        low = draw.uniform(-0.95, 0.0)
        return Box(
            draw.uniform(-0.25, 0.25, 2),
            draw.uniform(0.35, 0.6, 2),
            draw.uniform(0, math.pi),
            low,
            low + draw.uniform(0.6, 0.95),
            np.stack([hue(number, 12) for number in faces]),
        )


def rays_of(angle: float, side: int) -> Float[np.ndarray, "S S 6"]:
    """Origin and direction of the ray through the middle of each pixel.

    Args:
      angle: of the camera around the upright axis, which looks at the axis from a distance of 1.
      side: S.
    """
    across = (np.arange(side) + 0.5) / side * 2 - 1
    forward, right = _camera(angle)
    origin = np.zeros((side, side, 3))
    origin[..., :2] = across[:, None] * right - forward
    origin[..., 2] = -across[:, None]
    direction = np.broadcast_to([*forward, 0.0], origin.shape)
    return np.concatenate([origin, direction], -1)


def render(scene: list[Box], angles: np.ndarray, side: int) -> Float[np.ndarray, "A S S 3"]:
    """The pictures that cameras at those angles have of some boxes; the nearest face is seen.

    All rays of a column of pixels meet the same faces, so that a face is found once a column.
    """
    fine = side * SAMPLES
    across = (np.arange(fine) + 0.5) / fine * 2 - 1
    forward, right = _camera(angles)
    starts = across[:, None] * right[:, None]
    depth = np.full((len(angles), fine, fine), np.inf)
    which = np.zeros(depth.shape, np.int64)
    for number, box in enumerate(scene):
        cos, sin = math.cos(box.turn), math.sin(box.turn)
        into = np.array([[cos, -sin], [sin, cos]])
        start, along = (starts - box.place) @ into, forward @ into
        along = np.where(np.abs(along) < 1e-9, 1e-9, along)[:, None]
        ends = (np.stack([-box.half, box.half])[:, None, None] - start) / along
        enter, leave = ends.min(0), ends.max(0)
        first, axis = enter.max(-1), enter.argmax(-1)
        first = np.where(first < leave.min(-1), first, np.inf)
        face = 2 * axis + (np.take_along_axis(along[:, 0], axis, 1) > 0)
        level = -across  # the first row is the highest
        standing = (level >= box.low) & (level <= box.high)
        seen = standing[:, None] & (first[:, None] < depth)
        depth = np.where(seen, first[:, None], depth)
        which = np.where(seen, 1 + 4 * number + face[:, None], which)
    colours = np.concatenate([np.zeros((1, 3)), *(box.colours for box in scene)])
    shape = len(angles), side, SAMPLES, side, SAMPLES, 3
    return colours[which].reshape(shape).mean((2, 4))


def _camera(angle: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """Where it looks, and what is to its right, on the ground."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([-cos, -sin], -1), np.stack([-sin, cos], -1)
