"""A picture of shards shows each device on the part that it holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from experiments.shard_figure import COLOURS, SHARED, draw_shards, regions
from sharding.mesh import make_mesh


def placed(*spec, shape=(8, 12)):
    """An array on a mesh data=2, seq=1, tensor=4."""
    mesh = make_mesh(data=2, tensor=4)
    return jax.device_put(jnp.zeros(shape), NamedSharding(mesh, PartitionSpec(*spec)))


def drawn(array):
    """(x, y, width, height, colour) of the rectangles, and the words on them."""
    axes = Figure().add_subplot()
    draw_shards(axes, array, "title", ("rows", "columns")[-array.ndim :])
    boxes = [(*p.get_xy(), p.get_width(), p.get_height()) for p in axes.patches]
    colours = [to_hex(p.get_facecolor()) for p in axes.patches]
    return boxes, colours, [text.get_text() for text in axes.texts]


def test_every_part_is_told_once_with_its_holders():
    found = regions(placed("tensor", None))
    assert list(found) == [((i, i + 2), (0, 12)) for i in (0, 2, 4, 6)]
    assert list(found.values()) == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_parts_lie_where_they_are_in_the_array():
    boxes, colours, words = drawn(placed("data", "tensor"))
    assert boxes == [(3 * (i % 4), 4 * (i // 4), 3, 4) for i in range(8)]
    assert colours == list(COLOURS)
    assert words == [str(i) for i in range(8)]


def test_what_every_device_holds_has_no_colour_of_one():
    assert drawn(placed()) == ([(0, 0, 12, 8)], [SHARED], ["every device"])


def test_a_vector_is_one_row():
    boxes, _, words = drawn(placed("data", shape=(8,)))
    assert boxes == [(0, 0, 4, 1), (4, 0, 4, 1)]
    assert words == ["0 1 2 3", "4 5 6 7"]
