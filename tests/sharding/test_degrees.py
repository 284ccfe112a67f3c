"""Degrees nest in the levels of the data axis; presets are rows of one table of them."""

from __future__ import annotations

import itertools
import re

import jax
import pytest
from jax.sharding import PartitionSpec as P

from sharding.degrees import TABLE, Degrees, groups, held, legal, parsed
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import data_levels, in_words, make_mesh, mesh_from_text
from sharding.parallel import Parallel
from tests.meshes import layout_of

LEVELS = (2, 2, 2)


def test_a_data_axis_in_levels_is_several_mesh_axes_and_its_words():
    mesh = mesh_from_text("data=2x4")
    assert {name: mesh.shape[name] for name in ("data_0", "data_1")} == {"data_0": 2, "data_1": 4}
    assert "data" not in mesh.shape
    assert in_words(mesh.shape) == "data=2x4,seq=1,tensor=1"
    axes = Layout(mesh).axes
    assert axes.data == axes.rows == axes.batch == ("data_0", "data_1")
    assert data_levels("seq=2,data=2x3,tensor=2") == ("seq=2,data=6,tensor=2", (2, 3))
    assert data_levels("data=8") == ("data=8", ())


def test_the_inner_levels_lie_inside_a_host():
    hosts = [0, 1] * 4
    mesh = make_mesh((2, 2, 2), hosts=hosts)
    on = [
        [jax.devices().index(device) % 2 for device in each] for each in mesh.devices.reshape(2, 4)
    ]
    assert on == [[0] * 4, [1] * 4]
    both = make_mesh((2, 2), tensor=2, hosts=[0, 0, 1, 1, 2, 2, 3, 3], across={"data": 4})
    assert [d.id // 2 for d in both.devices.flat] == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(UserError, match="data=2x2 cannot cross 8 hosts"):
        make_mesh((2, 2), tensor=2, hosts=range(8), across={"data": 8})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("weight:2", "unknown 'weight'; did you mean 'weights'?"),
        ("weights:2,weights:4", "'weights' is given twice"),
        ("weights:two", "'weights:two' should look like weights:2"),
        ("weights:0", "weights:0 is no number of devices"),
        ("weights:4,gradients:2", "weights:4 does not nest in gradients:2"),
        ("weights:2,state:3", "gradients:2 does not nest in state:3"),
        ("weights:2,secondary:2", "secondary:2 is no smaller group inside weights:2"),
        ("weights:4,secondary:3", "secondary:3 is no smaller group inside weights:4"),
    ],
)
def test_degrees_that_do_not_nest_are_refused(text, words):
    with pytest.raises(UserError, match=re.escape(words)):
        Parallel(shards=text)


def test_what_is_not_named_is_split_as_the_kind_before_it():
    assert parsed("weights:2") == Degrees(2, 2, 2)
    assert parsed("gradients:4,state:8") == Degrees(1, 4, 8)


@pytest.mark.parametrize(
    ("data", "preset", "shards", "words"),
    [
        (8, "data", "state:4", "state:4 is no group of mesh axis data=8"),
        ((2, 4), "data", "weights:2,state:8", "weights:2 is no group of mesh axis data=2x4"),
        (8, "mics", "", "'mics' needs mesh axis data=8 in levels"),
        ((4, 1), "mics", "", "'mics' needs mesh axis data=4x1 in levels"),
        ((1, 4), "hpz", "", "'hpz' needs mesh axis data=1x4 in levels"),
        ((2, 4), "zero1", "state:8", "both say how state is split"),
    ],
)
def test_degrees_that_are_no_levels_are_refused(data, preset, shards, words):
    with pytest.raises(UserError, match=re.escape(words)):
        layout_of((data, 1, 1), preset, shards=shards)


def test_one_device_takes_any_degrees():
    assert layout_of((1, 1, 1), shards="weights:2,state:8").degrees == Degrees()


def test_the_words_are_rows_of_the_table():
    found = {word: layout_of(((2, 2, 2), 1, 1), word).degrees for word in TABLE}
    assert found == {
        "data": Degrees(1, 1, 1),
        "zero1": Degrees(1, 1, 8),
        "zero2": Degrees(1, 8, 8),
        "fully_sharded": Degrees(8, 8, 8),
        "mics": Degrees(4, 4, 4),
        "hpz": Degrees(8, 8, 8, 4),
    }
    assert set(found.values()) <= set(legal(LEVELS))
    assert len(legal(LEVELS)) == 20 + 15  # without and with a second copy


def test_a_part_of_a_large_group_is_a_part_of_that_of_a_smaller_one():
    both = layout_of(((2, 2, 2), 1, 1), "data", shards="weights:2,gradients:4,state:8")
    parts = [
        both.stored_spec("w", (8, 24), ("embed", None), over)
        for over in (both.weight_axes, both.gradient_axes, both.state_axes)
    ]
    assert parts == [
        P(None, "data_2"),
        P(None, ("data_2", "data_1")),
        P(None, ("data_2", "data_1", "data_0")),
    ]


def test_bytes_of_the_table_and_of_the_papers():
    # ZeRO, figure 1: 7.5 billion parameters on 64 devices, in GB.
    of = {word: held(7.5, TABLE[word](64, 8)) for word in TABLE}
    assert of["data"] == 120
    assert of["zero1"] == pytest.approx(31.4, abs=0.01)
    assert of["zero2"] == pytest.approx(16.6, abs=0.05)
    assert of["fully_sharded"] == pytest.approx(1.9, abs=0.05)
    assert of["hpz"] == of["fully_sharded"] + 2 * 7.5 / 8
    assert groups((3, 2, 4)) == (1, 4, 8, 24)
    for one, two in itertools.pairwise((8, 4, 2, 1)):  # smaller groups hold more
        assert held(1, Degrees(one, 8, 8)) < held(1, Degrees(two, 8, 8))
