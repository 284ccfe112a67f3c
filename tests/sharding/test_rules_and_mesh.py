"""Logical axes become mesh axes by a table; what does not fit is named."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import PartitionSpec as P

from sharding.axes import Axes
from sharding.errors import UserError
from sharding.mesh import AXIS_NAMES, make_mesh
from sharding.rules import DEFAULT_RULES, partition_spec


def test_the_default_mesh_is_one_device():
    mesh = make_mesh()
    assert mesh.axis_names == AXIS_NAMES
    assert mesh.devices.shape == (1,) * len(AXIS_NAMES)


def test_a_mesh_has_the_sizes_asked_for_and_the_first_devices():
    mesh = make_mesh(2, 1, 3)
    assert dict(mesh.shape) == {**dict.fromkeys(AXIS_NAMES, 1), "data": 2, "tensor": 3}
    assert set(mesh.devices.flat) == set(jax.devices()[:6])
    assert make_mesh(stream=2, expert=4).devices.shape == (1, 1, 1, 2, 1, 4, 1)


def test_a_mesh_takes_the_devices_it_is_given():
    last = jax.devices()[-2:]
    assert set(make_mesh(data=2, devices=last).devices.flat) == set(last)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"data": 0}, "data=0: give a size of at least 1"),
        ({"tensor": -2}, "tensor=-2"),
        ({"data": 3, "seq": 3}, "data=3,seq=3,tensor=1 needs 9 devices but there are 8"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(sizes, words):
    with pytest.raises(UserError, match=words):
        make_mesh(**sizes)


def test_axes_of_a_batch_are_those_that_split_tokens():
    assert Axes().batch == ()
    assert Axes(splits=(("ffn", "t"),)).batch == ()
    assert Axes(data="d", seq="s").batch == ("d", "s")


def test_an_axis_of_one_device_splits_nothing():
    assert partition_spec("w", (7,), ("ffn",), make_mesh(data=8)) == P(None)


def test_each_dimension_goes_where_its_rule_says():
    mesh = make_mesh(tensor=4)
    spec = partition_spec("w", (3, 8, 5, 7), ("layer", "ffn", "embed", None), mesh)
    assert spec == P(None, "tensor", None, None)
    rules = {"embed": "data", "ffn": None}
    other = partition_spec("w", (4, 8), ("embed", "ffn"), make_mesh(data=2), rules)
    assert other == P("data", None)


def test_rules_name_only_axes_of_the_mesh():
    assert set(DEFAULT_RULES.values()) <= {*AXIS_NAMES, None}


def test_a_dimension_that_is_not_divisible_names_parameter_shape_axis_and_size():
    with pytest.raises(UserError) as caught:
        partition_spec("blocks/ffn/w_in", (8, 30), ("embed", "ffn"), make_mesh(tensor=4))
    for word in ("blocks/ffn/w_in", "(8, 30)", "'ffn' = 30", "tensor=4"):
        assert word in str(caught.value)


def test_a_logical_axis_without_a_rule_is_named():
    with pytest.raises(UserError, match="parameter w: logical axis 'nobody' has no rule"):
        partition_spec("w", (8,), ("nobody",), make_mesh())
