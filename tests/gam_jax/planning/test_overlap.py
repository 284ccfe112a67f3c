"""Schedules are possible ones, between what one resource must do and one thing after the other."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.planning.overlap import (
    Operation,
    chains,
    decomposed,
    ideal,
    list_schedule,
    serial,
    worth_it,
)

seconds = st.floats(0, 100)


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 9))
    kinds = st.sampled_from(("compute", "memory", "network"))
    found = []
    for number in range(count):
        earlier = st.sets(st.sampled_from(range(number))) if number else st.just(set())
        after = tuple(str(other) for other in sorted(draw(earlier)))
        found.append(Operation(str(number), draw(kinds), draw(st.integers(0, 20)), after))
    return draw(st.permutations(found))


@given(graphs())
def test_a_schedule_keeps_order_and_gives_a_resource_to_one_at_a_time(operations):
    schedule = list_schedule(operations)
    total: dict[str, float] = collections.defaultdict(float)
    for op in operations:
        begin, end = schedule.times[op.name]
        assert end == begin + op.seconds
        assert all(schedule.times[name][1] <= begin for name in op.after)
        total[op.resource] += op.seconds
    for one in operations:
        for other in operations:
            if one.name != other.name and one.resource == other.resource:
                first, second = sorted((schedule.times[one.name], schedule.times[other.name]))
                assert first[1] <= second[0]
    assert max(total.values()) <= schedule.seconds <= sum(op.seconds for op in operations)


def test_of_what_can_begin_the_longest_chain_goes_first():
    short, long = Operation("a", "compute", 1), Operation("b", "compute", 1)
    after = Operation("c", "network", 9, ("b",))
    assert list_schedule([short, long, after]).seconds == 10


def test_what_waits_for_nothing_that_is_there_is_refused():
    with pytest.raises(ValueError, match=r"waits for 'z'"):
        list_schedule([Operation("a", "compute", 1, ("z",))])
    circle = [Operation("a", "compute", 1, ("b",)), Operation("b", "compute", 1, ("a",))]
    with pytest.raises(ValueError, match=r"\['a', 'b'\] wait for each other"):
        list_schedule(circle)


@given(seconds, seconds, st.integers(1, 64), st.floats(0, 2))
def test_steps_of_a_ring_take_the_longer_of_both_and_pay_where_the_rule_says(
    product, collective, devices, penalty
):
    steps = decomposed(product, collective, devices, penalty)
    assert ideal(product, collective, devices) <= steps * (1 + 1e-12)
    assert worth_it(product, collective, devices, penalty) == (steps < serial(product, collective))
    if devices > 1:
        assert steps >= max(product, collective) * (1 - 1e-12)
        assert ideal(product, collective, devices) <= serial(product, collective) * (1 + 1e-12)


def test_parts_of_rows_overlap_what_they_need_by_themselves():
    """Two parts over one block: the second computes while the first sends."""
    assert chains((("compute", 2.0), ("network", 3.0)), 1, 4) == 4 * 5.0
    assert chains((("compute", 2.0), ("network", 3.0)), 2, 1) == 2 + 3 + 3
    assert chains((("memory", 2.0), ("memory", 3.0), ("network", 0.0)), 2, 3) == 2 * 3 * 5
