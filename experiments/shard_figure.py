"""A picture of who holds what: an array, cut as its devices hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = (
    "#a9c8ea",
    "#f3c79b",
    "#b9dcae",
    "#e6b5d6",
    "#c9bbee",
    "#ead98d",
    "#f0b3ad",
    "#a8dadd",
)
"""Of devices 0 to 7; the next ones begin again."""
SHARED = "#eeece8"
"""Of what all devices hold."""

Region = tuple[tuple[int, int], ...]
"""(start, stop) along each dimension."""


def regions(array: jax.Array) -> dict[Region, list[int]]:
    """The parts that an array is held in, and the devices that hold each."""
    found: dict[Region, list[int]] = {}
    parts = array.sharding.devices_indices_map(array.shape)
    for device, slices in sorted(parts.items(), key=lambda part: part[0].id):
        ends = (part.indices(size)[:2] for part, size in zip(slices, array.shape, strict=True))
        found.setdefault(tuple(ends), []).append(device.id)
    return found


def draw_shards(axes: Axes, array: jax.Array, title: str, names: tuple[str, ...] = ()) -> None:
    """Draws the last two dimensions of an array, each part in the colour of who holds it.

    Args:
      axes: what to draw on.
      array: of one dimension or more, on any mesh.
      title: above the picture.
      names: of the array's dimensions.
    """
    from matplotlib.patches import Rectangle  # late: it takes half a second

    *_, height, width = (1, *array.shape)
    devices = array.sharding.num_devices
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for region, holders in regions(array).items():
        (top, bottom), (left, right) = ((0, 1), *region)[-2:]
        colour = SHARED if 1 < len(holders) == devices else COLOURS[holders[0] % len(COLOURS)]
        spot: Any = {"facecolor": colour, "edgecolor": "white", "linewidth": 1.5}
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, **spot))
        words = "every device" if 1 < len(holders) == devices else " ".join(map(str, holders))
        middle = (left + right) / 2, (top + bottom) / 2
        upright = (right - left) / width < 0.2 and len(words) > 3
        style: Any = {"ha": "center", "va": "center", "rotation": 90 if upright else 0}
        axes.text(*middle, words, color="#333333", fontsize=9, **style)
    shown = [f"{n} {s}" for n, s in zip(names or [""] * array.ndim, array.shape, strict=True)]
    axes.set_title(title, fontsize=10, family="monospace", loc="left")
    axes.set_xlabel(" x ".join(word.strip() for word in shown), fontsize=8, color="#666666")
