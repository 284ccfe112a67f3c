"""A cluster is read from a few words, and tells which links an axis of a mesh crosses."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.planning.cluster import Level, cluster, clusters, strides
from sharding.errors import UserError
from tests.gam_jax.planning.made import made


def test_hosts_of_gpus_have_the_levels_that_they_cross():
    one, two = cluster("h100:1x8"), cluster("h100:2x8")
    assert [level.name for level in one.levels] == ["node"]
    assert [(level.name, level.devices) for level in two.levels] == [("node", 8), ("network", 16)]
    assert two.devices == 16
    assert cluster("h100:1").devices == 1  # which needs no links at all


def test_a_node_of_three_kinds_of_links():
    found = cluster("frontier_gcd:4x8")
    shapes = [(level.name, level.devices) for level in found.levels]
    assert shapes == [("package", 2), ("node", 8), ("network", 32)]
    assert [members for members, _, _ in found.crossed(1, 32)] == [2, 4, 4]
    assert [members for members, _, _ in found.crossed(2, 16)] == [4, 4]
    assert [bandwidth for _, bandwidth, _ in found.crossed(8, 4)] == [12.5e9]


def test_an_axis_has_two_links_where_it_closes_a_ring_and_one_where_it_does_not():
    pod = cluster("v5e:16x16")
    [(members, whole, _)] = pod.crossed(1, 256)
    assert (members, whole) == (256, 200e9)  # all four links of a chip
    assert pod.crossed(1, 16)[0][1] == 100e9
    assert pod.crossed(16, 16)[0][1] == 100e9
    assert pod.crossed(1, 4)[0][1] == 50e9  # a line within a direction
    assert cluster("v5e:4x4").crossed(1, 4)[0][1] == 50e9  # too small to close


def test_slices_are_joined_by_the_network():
    found = cluster("v5e:4x4*2")
    assert [(level.name, level.devices) for level in found.levels] == [
        ("torus", 16),
        ("network", 32),
    ]


@given(
    sizes=st.lists(st.sampled_from((1, 2, 4, 8)), min_size=1, max_size=4),
    levels=st.lists(st.sampled_from((2, 4, 8)), min_size=1, max_size=3),
)
def test_the_levels_of_all_axes_join_all_devices(sizes, levels):
    mesh = {f"a{i}": size for i, size in enumerate(sizes)}
    groups = [math.prod(levels[: i + 1]) for i in range(len(levels))]
    whole = max(groups[-1], math.prod(sizes))
    found = made(*(Level(f"l{i}", n, 1.0) for i, n in enumerate((*groups, whole))))
    for name, stride in strides(mesh).items():
        members = [count for count, _, _ in found.crossed(stride, mesh[name])]
        assert math.prod(members) == mesh[name]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v5f:4x4", "did you mean"),
        ("v5e", "unknown ''|give a shape"),
        ("v5e:4", "give 2 numbers"),
        ("v5e:4x4x4", "give 2 numbers"),
        ("v5e:0x4", "give a shape"),
        ("v5e:four", "give a shape, as v5e:4x4"),
        ("h100:1x2x3", "HOSTSxDEVICES"),
        ("h100:2x8*2", "HOSTSxDEVICES"),
        ("v4:2x2x1", r"v4 has no figure links\.torus\.bandwidth"),
        ("h200:2x8", r"h200 has no figure links\.network\.bandwidth"),
        ("nowhere.toml:8", "no file of profiles"),
        ("gs://a/b.toml:8", "no path of a file system"),
        ("h100:99999x8", "more than 65,536 devices"),
    ],
)
def test_what_there_is_not_is_refused_in_one_line(text, says):
    with pytest.raises(UserError, match=says) as caught:
        cluster(text)
    assert "\n" not in str(caught.value)


def test_an_axis_whose_neighbours_stand_in_two_nodes_is_joined_by_the_network_alone():
    found = cluster("h100:3x8")  # tensor=3 inside data=8: devices 6 and 9 are neighbours
    assert [members for members, _, _ in found.crossed(1, 3)] == [3]  # 6, 7 and 8
    assert [members for members, _, _ in found.crossed(3, 8)] == [8]
    assert [bandwidth for _, bandwidth, _ in found.crossed(3, 8)] == [found.levels[-1].bandwidth]
    assert [members for members, _, _ in found.crossed(4, 6)] == [2, 3]


TWO = """
[{name}]
about = "{name}"
flops.bfloat16 = {{ value = {flops}, unit = "FLOP/s", kind = "measured", source = "here" }}
memory.device.capacity = {{ value = {capacity}, unit = "B", kind = "measured", source = "here" }}
memory.device.bandwidth = {{ value = 1e11, unit = "B/s", kind = "measured", source = "here" }}
links.network.bandwidth = {{ value = 1e9, unit = "B/s", kind = "measured", source = "here" }}
links.network.latency = {{ value = {latency}, unit = "s", kind = "measured", source = "here" }}
"""


def test_joined_clusters_have_the_worst_of_what_each_reaches_uses_and_waits(tmp_path, monkeypatch):
    """A peak of which half is reached is none to be compared, nor memory that nobody can use."""
    fast = (
        TWO.format(name="fast", flops=1e14, capacity=16e9, latency=1e-6)
        + """
reached.bfloat16 = { value = 0.5, unit = "share", kind = "measured", source = "here" }
memory.device.usable = { value = 14e9, unit = "B", kind = "measured", source = "here" }
"""
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fast.toml").write_text(fast)
    (tmp_path / "slow.toml").write_text(
        TWO.format(name="slow", flops=8e13, capacity=32e9, latency=1e-5)
    )
    for text in ("fast.toml:2x1+slow.toml:2x1", "slow.toml:2x1+fast.toml:2x1"):
        found = clusters(text)
        assert found.profile.flops("bfloat16") == 5e13
        assert found.profile.memory.capacity == 14e9
        assert [level.latency for level in found.levels] == [1e-5, 1e-5]
