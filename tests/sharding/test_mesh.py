"""A mesh is what its words say; across hosts, the inner part of an axis stays inside one."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.errors import UserError
from sharding.mesh import AXIS_NAMES, arrange, in_words, make_mesh, mesh_from_text, parse_axes


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("", {"data": 8}),
        ("data=2,seq=2,tensor=2", {"data": 2, "seq": 2, "tensor": 2}),
        ("tensor=2,data=4", {"data": 4, "tensor": 2}),
        ("seq=2,data=-1", {"data": 4, "seq": 2}),
        ("tensor=2", {"tensor": 2}),
        ("stream=2,expert=-1", {"stream": 2, "expert": 4}),
    ],
)
def test_words_make_a_mesh(text, sizes):
    assert dict(mesh_from_text(text).shape) == {**dict.fromkeys(AXIS_NAMES, 1), **sizes}


@given(sizes=st.fixed_dictionaries(dict.fromkeys(AXIS_NAMES, st.integers(1, 4))))
def test_words_of_a_mesh_name_every_axis_of_several_devices(sizes):
    assert dict.fromkeys(AXIS_NAMES, 1) | parse_axes(in_words(sizes)) == sizes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dta=2", "unknown axis 'dta'; did you mean 'data'"),
        (
            "model=2",
            "unknown axis 'model'; choose from worker, pipe, data, stream, seq, expert, tensor",
        ),
        ("data=2,data=4", "'data' is given twice"),
        ("data=two", "'data=two' should look like data=2"),
        ("data", "should look like data=2"),
        ("data=0", "mesh axis data=0: give a size of at least 1"),
        ("data=-2", "mesh axis data=-2"),
        ("data=-1,seq=-1", "only one axis can be -1"),
        ("data=-1,seq=3", "8 devices do not divide by 3"),
        ("data=16", "needs 16 devices but there are 8"),
        ("data=2x2,pipe=1x2", "--mesh=data=2x2,pipe=1x2: 'pipe=1x2' should look like pipe=2"),
        ("data=2x0", "mesh axis data_1=0: give a size of at least 1"),
        ("data=2x-1", "'data=2x-1' should look like data=2"),
    ],
)
def test_words_that_make_no_mesh_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        mesh_from_text(text)


def test_nothing_is_no_axes():
    assert parse_axes("") == {}


powers = st.sampled_from([1, 2, 3, 4])


three = st.tuples(powers, powers, powers)
AXES = ("data", "seq", "tensor")


@given(crossed=three, kept=three)
def test_each_device_has_one_place_and_the_inside_of_an_axis_never_leaves_its_host(crossed, kept):
    across = dict(zip(AXES, crossed, strict=True))
    crossed = [across.get(name, 1) for name in AXIS_NAMES]
    within = dict(zip(AXES, kept, strict=True))
    kept = [within.get(name, 1) for name in AXIS_NAMES]
    sizes = [c * k for c, k in zip(crossed, kept, strict=True)]
    inside = math.prod(kept)
    hosts = [i // inside for i in range(math.prod(sizes))]
    places = arrange(hosts, sizes, across)
    assert places.shape == tuple(sizes)
    assert sorted(places.reshape(-1)) == list(range(len(hosts)))
    on = np.asarray(hosts)[places]
    for axis in range(len(AXIS_NAMES)):
        lines = np.moveaxis(on, axis, -1).reshape(-1, crossed[axis], kept[axis])
        assert np.all(lines == lines[:, :, :1])
        assert all(len(set(line[:, 0])) == crossed[axis] for line in lines)


def test_the_outermost_axes_cross_hosts_first():
    on = arrange([0, 0, 0, 0, 1, 1, 1, 1], (1, 1, 2, 1, 2, 1, 2)) // 4
    assert np.all(on[0, 0, 0] == 0)
    assert np.all(on[0, 0, 1] == 1)
    over_seq = arrange([0, 0, 1, 1], (1, 1, 1, 1, 2, 1, 2)) // 2
    assert np.all(over_seq[0, 0, 0, 0, 0] == 0)
    over_pipe = arrange([0, 0, 1, 1], (1, 2, 2, 1, 1, 1, 1)) // 2
    assert np.all(over_pipe[0, 1] == 1)
    over_worker = arrange([0, 0, 1, 1], (2, 2, 1, 1, 1, 1, 1)) // 2
    assert np.all(over_worker[1] == 1)


@pytest.mark.parametrize(
    ("hosts", "sizes", "across", "words"),
    [
        ([0, 0, 1], (1, 1, 3, 1, 1, 1, 1), None, "hosts have 2, 1 devices"),
        ([0, 1, 2], (1, 1, 1, 1, 1, 1, 3), {"data": 3}, "axis data=1 cannot cross 3 hosts"),
        ([0, 0, 1, 1], (1, 1, 4, 1, 1, 1, 1), {"data": 4}, "makes 4 hosts but the mesh has 2"),
    ],
)
def test_hosts_that_do_not_fit_are_refused(hosts, sizes, across, words):
    with pytest.raises(UserError, match=words):
        arrange(hosts, sizes, across)


def test_hosts_on_one_machine_may_be_named_all_the_same():
    mesh = make_mesh(2, 2, 2, across={"data": 1})
    assert sorted(device.id for device in mesh.devices.flat) == sorted(
        device.id for device in jax.devices()
    )
