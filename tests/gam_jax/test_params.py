"""Everything about parameters is read from one table."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gam_jax import params as tables
from gam_jax.params import Param
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.parallel import Parallel

TABLE = {
    "inner": {
        "w": Param((200, 300), ("embed", "ffn"), tables.fan_in(200)),
        "b": Param((300,), ("ffn",), tables.zeros, decay=False),
    },
    "scale": Param((200,), (None,), tables.ones, decay=False),
    "position": Param((50, 200), ("position", "embed"), tables.normal(0.02)),
}


def initial(table, key):
    """On the host, drawn by one program."""
    draw = jax.jit(functools.partial(tables.init_params, table))
    return jax.tree.map(np.asarray, draw(key))


def test_a_parameter_has_an_axis_for_each_dimension():
    with pytest.raises(ValueError, match="differ in length"):
        Param((2, 3), ("embed",), tables.zeros)


def test_initial_values_follow_their_distributions():
    values = initial(TABLE, jax.random.key(0))
    bound = 1 / np.sqrt(200)
    w = np.asarray(values["inner"]["w"])
    assert w.dtype == np.float32
    assert 0.99 * bound < np.abs(w).max() <= bound
    assert w.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)
    assert w.mean() == pytest.approx(0, abs=bound / 50)
    assert np.std(values["position"]) == pytest.approx(0.02, rel=0.03)
    assert np.all(values["inner"]["b"] == 0)
    assert np.all(values["scale"] == 1)


def test_a_value_depends_on_the_key_and_its_own_path_alone():
    """Parameters that come or go elsewhere change nothing; a new path draws anew."""
    key = jax.random.key(0)
    part = {"w": TABLE["inner"]["w"]}
    whole = initial(TABLE, key)["inner"]["w"]
    np.testing.assert_array_equal(initial({"inner": part}, key)["inner"]["w"], whole)
    assert np.any(initial({"other": part}, key)["other"]["w"] != whole)
    again = initial(TABLE, jax.random.key(1))["inner"]["w"]
    assert np.any(again != whole)


def test_shapes_counts_and_masks_are_the_table_s():
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), tables.abstract_params(TABLE))
    assert shapes["inner"] == {"w": ((200, 300), jnp.float32), "b": ((300,), jnp.float32)}
    assert tables.count_params(TABLE) == 200 * 300 + 300 + 200 + 50 * 200
    assert tables.decay_mask(TABLE) == {
        "inner": {"w": True, "b": False},
        "scale": False,
        "position": True,
    }


def test_shardings_follow_the_rules():
    layout = Layout(make_mesh(tensor=4))
    specs = tables.param_specs(TABLE, layout)
    assert specs["inner"] == {"w": PartitionSpec(None, "tensor"), "b": PartitionSpec("tensor")}
    assert specs["position"] == PartitionSpec(None, None)
    placed = tables.shardings(specs, layout)
    assert placed["inner"]["w"] == NamedSharding(layout.mesh, specs["inner"]["w"])


def test_shards_are_stored_over_data_as_well():
    mesh = make_mesh(data=2, tensor=4)
    zero1, zero3 = (Layout(mesh, Parallel(f"{word}+tensor")) for word in ("zero1", "fully_sharded"))
    rules, stored = tables.rule_specs(TABLE, zero1), tables.stored_specs(TABLE, zero1)
    assert stored["inner"]["w"] == PartitionSpec("data", "tensor")
    assert tables.param_specs(TABLE, zero1) == rules
    assert tables.param_specs(TABLE, zero3) == tables.stored_specs(TABLE, zero3) == stored
    assert tables.shard_dims(TABLE, zero1)["inner"] == {"w": -2, "b": 0}


def test_a_mesh_that_does_not_fit_is_refused_by_the_parameter_s_path():
    with pytest.raises(UserError, match=r"parameter inner/b of shape \(300,\).*tensor=8"):
        tables.param_specs(TABLE, Layout(make_mesh(tensor=8)))


def test_stacking_adds_a_layer_axis_and_independent_values():
    stacked = tables.stack(TABLE, 3)
    assert stacked["inner"]["w"].shape == (3, 200, 300)
    assert stacked["inner"]["w"].axes == ("layer", "embed", "ffn")
    assert tables.count_params(stacked) == 3 * tables.count_params(TABLE)
    assert tables.decay_mask(stacked) == tables.decay_mask(TABLE)
    one, two, three = initial(stacked, jax.random.key(0))["inner"]["w"]
    assert np.any(one != two)
    assert np.any(two != three)


def test_a_path_is_text():
    leaves = jax.tree_util.tree_leaves_with_path({"a": {"b": [0, 1]}})
    assert [tables.path_name(path) for path, _ in leaves] == ["a/b/0", "a/b/1"]
