"""Costs follow from closed forms, and move with bytes and bandwidths as they must."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.planning.cluster import Level
from gam_jax.planning.cost import OVERLAPS, cost, seconds_of
from gam_jax.planning.work import Work
from sharding import cost as bytes_of
from sharding.messages import Message
from tests.gam_jax.planning.made import made

COLLECTIVES = st.sampled_from(sorted(bytes_of.SENT))
SIZES = st.integers(1, 10**9)
MESH = {"data": 4, "tensor": 4}


def two_levels(inside=100.0, outside=10.0, latency=0.0):
    """Four hosts of four devices."""
    return made(Level("node", 4, inside, latency), Level("network", 16, outside, latency))


def of(message, cluster, mesh=None):
    """Seconds of one message."""
    return seconds_of(message, cluster, MESH if mesh is None else mesh)


@given(collective=COLLECTIVES, size=st.integers(1, 10**6), devices=st.sampled_from((2, 3, 8)))
def test_on_one_level_a_collective_takes_the_bytes_of_a_ring(collective, size, devices):
    cluster = made(Level("node", devices, 50.0))
    message = Message(collective, ("data",), devices, size * devices)
    sent = bytes_of.SENT[collective](size * devices, devices)
    assert of(message, cluster, {"data": devices}) == pytest.approx(sent / 50)


def test_what_is_gathered_inside_is_sent_outside_once():
    cluster, size = two_levels(), 1600
    everywhere = {"data": 16}
    inside, outside = size * 3 / 4 / 100, size / 4 * 3 / 4 / 10
    scattered = of(Message("reduce_scatter", ("data",), 16, size), cluster, everywhere)
    assert scattered == pytest.approx(inside + outside)
    whole = of(Message("all_reduce", ("data",), 16, size), cluster, everywhere)
    assert whole == pytest.approx(2 * scattered)
    gathered = of(Message("all_gather", ("data",), 16, size // 16), cluster, everywhere)
    assert gathered == pytest.approx(scattered)
    exchanged = of(Message("all_to_all", ("data",), 16, size), cluster, everywhere)
    assert exchanged == pytest.approx(size * 3 / 16 / 100 + size * 12 / 16 / 10)
    sent_on = of(Message("permute", ("data",), 16, size), cluster, everywhere)
    assert sent_on == size / 10  # some neighbour is on another host


def test_an_inner_axis_stays_inside_and_an_outer_one_does_not():
    cluster = two_levels()
    inner = of(Message("all_reduce", ("tensor",), 4, 1000), cluster)
    outer = of(Message("all_reduce", ("data",), 4, 1000), cluster)
    assert outer == pytest.approx(10 * inner)


def test_latencies_are_those_of_the_steps_of_rings():
    cluster = two_levels(math.inf, math.inf, latency=1.0)
    both = Message("all_reduce", ("data", "tensor"), 16, 1)
    assert of(both, cluster) == 2 * (3 + 3)
    assert of(dataclasses.replace(both, count=5), cluster) == 5 * 2 * (3 + 3)
    assert of(Message("permute", ("data",), 4, 1), cluster) == 1


@given(
    collective=COLLECTIVES,
    size=SIZES,
    more=st.floats(1, 100),
    inside=st.floats(1, 1e3),
    outside=st.floats(1, 1e3),
    faster=st.floats(1, 100),
    axes=st.sampled_from((("data",), ("tensor",), ("data", "tensor"))),
)
def test_never_less_for_more_bytes_nor_more_for_faster_links(
    collective, size, more, inside, outside, faster, axes
):
    devices = math.prod(MESH[name] for name in axes)
    message = Message(collective, axes, devices, size)
    now = of(message, two_levels(inside, outside, 0.1))
    tolerance = 1 + 1e-9
    assert (
        of(
            Message(collective, axes, devices, math.ceil(size * more)),
            two_levels(inside, outside, 0.1),
        )
        * tolerance
        >= now
    )
    assert of(message, two_levels(inside * faster, outside, 0.1)) <= now * tolerance
    assert of(message, two_levels(inside, outside * faster, 0.1)) <= now * tolerance


def work(flops=1e12, operands=0.0, other=0.0, sent=10**9, held=1.0):
    """Of one step, with one message over each axis."""
    messages = (
        Message("all_reduce", ("data",), 4, sent),
        Message("all_gather", ("tensor",), 4, sent),
        Message("all_reduce", ("seq",), 1, sent),
    )
    return Work(MESH, {"bfloat16": flops}, operands, other, messages, held)


def test_a_step_is_the_sum_of_its_parts_and_names_the_largest():
    found = cost(work(flops=2e12, other=1e11), two_levels(1e12, 1e12))
    assert found.products == 2
    assert found.memory == 1
    assert set(found.messages) == {"data", "tensor"}  # what goes nowhere costs nothing
    assert found.seconds == pytest.approx(3 + sum(found.messages.values()))
    assert found.limit == "products"
    assert cost(work(), two_levels(1, 1)).limit == "messages over tensor"
    assert cost(work(other=1e13), two_levels(1e12, 1e12)).limit == "memory"


def test_products_take_their_operands_where_these_are_slower():
    assert cost(work(flops=1e12, operands=5e11), two_levels()).products == 5


def test_what_is_held_fits_up_to_the_capacity():
    assert cost(work(held=1e9), two_levels()).fits
    assert not cost(work(held=1e9 + 1), two_levels()).fits


@given(flops=st.floats(1e6, 1e15), sent=SIZES)
def test_overlap_hides_messages_and_never_more_than_there_are(flops, sent):
    cluster = two_levels(1e9, 1e9)
    none, decomposed, ideal = (
        cost(work(flops=flops, sent=sent), cluster, overlap).seconds for overlap in OVERLAPS
    )
    products = flops / 1e12
    assert ideal <= decomposed * (1 + 1e-9)
    assert decomposed <= none * (1 + 1e-9)
    assert ideal >= products * (1 - 1e-9)
