"""Joined clusters: what crosses them, and whether data or stages should be outermost."""

from __future__ import annotations

import dataclasses

import pytest

from gam_jax.layers import GAM, Block
from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.planning.between import between
from gam_jax.planning.cluster import clusters
from gam_jax.planning.traces import Run
from gam_jax.planning.work import Candidate, Work
from sharding.errors import UserError
from sharding.mesh import AXIS_NAMES
from sharding.messages import Message

MODEL = LanguageModel(Block(GAM(slots=8)), width=64, depth=2, vocab=256)
RUN = Run(MODEL, OptimizerConfig(), 32, 128, lambda *_: None)
TWO = clusters("h100:1x8+a100_80:1x8")
SLOW = min(50e9, 25e9)


def candidate(**sizes):
    """A mesh of sixteen devices."""
    mesh = tuple((name, sizes.get(name, 1)) for name in AXIS_NAMES)
    return Candidate(mesh, "data+tensor", 1, False)


def work(one, *messages):
    """Of a step that sends these."""
    return Work(one.sizes, {}, 0.0, 0.0, messages, 0.0)


def test_joined_clusters_are_as_fast_as_the_slower_in_each_figure():
    assert [level.devices for level in TWO.levels] == [8, 16]
    assert TWO.levels[0].bandwidth == 300e9
    assert TWO.levels[1].bandwidth == SLOW
    assert TWO.profile.flops("bfloat16") == 312e12
    assert [part.profile.name for part in TWO.parts] == ["h100", "a100_80"]
    assert clusters("h100:1x8").parts == ()


def test_only_the_outermost_axis_crosses():
    one = candidate(data=4, tensor=4)
    found = between(RUN, one, work(one), TWO)
    assert found.crossing == ("data",)
    assert found.data == 0


def test_groups_that_do_not_divide_a_cluster_cross_it():
    six = clusters("h100:1x6+a100_80:1x6")
    one = candidate(data=3, tensor=4)  # devices 4 to 7 are one group
    assert between(RUN, one, work(one), six).crossing == ("data", "tensor")
    one = candidate(data=4, tensor=3)
    assert between(RUN, one, work(one), six).crossing == ("data",)


def test_gradients_cross_once_and_activations_twice():
    one, size = candidate(data=16), 1 << 20
    found = between(RUN, one, work(one, Message("all_reduce", ("data",), 16, size)), TWO)
    # Eight devices of a cluster each send an eighth, and both clusters' sums are halved and joined.
    assert found.data == pytest.approx(2 * size / 8 / 2 / SLOW)
    rows = 32 / 16 * 2
    assert found.pipe == pytest.approx(2 * rows * 128 * 64 * 4 / SLOW)
    assert found.outermost == "data"


def test_few_activations_beside_many_gradients_make_stages_outermost():
    one = candidate(data=16)
    few = dataclasses.replace(RUN, batch=16, window=1)
    found = between(few, one, work(one, Message("all_reduce", ("data",), 16, 1 << 30)), TWO)
    assert found.outermost == "pipe"


@pytest.mark.parametrize("text", ["h100:1x8+a100_80:1x4", "h100:2x4+a100_80:1x8", "h100:1x8+"])
def test_clusters_that_differ_are_refused_in_one_line(text):
    with pytest.raises(UserError) as caught:
        clusters(text)
    assert "\n" not in str(caught.value)
