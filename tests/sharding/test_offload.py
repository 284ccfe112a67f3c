"""The simulated update of subgroups on host and device keeps to its formula and its bound."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.offload import Rates, balanced_stride, best_stride, cycle, on_device, simulate

SIZE = 1e6
rates = st.builds(
    Rates,
    host=st.floats(5e8, 4e9),
    cast=st.floats(2e9, 4e10),
    device=st.floats(2e10, 2e11),
    link=st.floats(8e9, 4e11),
)
groups, strides = st.integers(1, 40), st.integers(2, 8)


@given(groups, strides, rates)
def test_it_takes_the_slower_side_s_time_up_to_one_cycle(groups, stride, rates):
    both = cycle(stride, SIZE, rates)
    found = simulate(groups, stride, SIZE, rates).seconds
    assert abs(found - groups / stride * max(both)) <= 1.01 * sum(both)


@given(groups, strides, rates)
def test_every_subgroup_is_updated_once_and_the_last_is_drained(groups, stride, rates):
    """For each n mod k: what was fetched is flushed, and what the host has done is sent."""
    found, mine = simulate(groups, stride, SIZE, rates), on_device(groups, stride)
    for kind in ("fetch", "step", "flush"):
        assert found.groups(kind) == mine
    for kind in ("update", "send"):
        assert found.groups(kind) == [x for x in range(groups) if x not in mine]


@given(groups, strides, rates)
def test_nothing_is_done_twice_at_once_nor_before_what_it_needs(groups, stride, rates):
    tasks = simulate(groups, stride, SIZE, rates).tasks
    at = {(task.kind, task.group): task for task in tasks}
    for side in (("update",), ("send", "fetch", "step", "flush")):
        own = sorted((t for t in tasks if t.kind in side), key=lambda t: t.start)
        for one, other in itertools.pairwise(own):
            assert one.end <= other.start * (1 + 1e-12)
    for before, after in (("update", "send"), ("fetch", "step"), ("step", "flush")):
        for (kind, group), task in at.items():
            if kind == after:
                assert at[before, group].end <= task.start * (1 + 1e-12)


@given(groups, strides, rates)
def test_the_gain_is_at_most_k_over_k_less_1(groups, stride, rates):
    alone, found = (simulate(groups, k, SIZE, rates).seconds for k in (0, stride))
    assert alone / found <= stride / (stride - 1) * (1 + 1e-9)


LINKS = {400e9: 2, 50e9: 2, 25e9: 3, 20e9: 4, 12e9: 6}
"""Bytes a second -> the stride that balances both sides, of one host."""


@pytest.mark.parametrize("link", LINKS)
def test_the_slower_the_link_the_larger_the_best_stride(link):
    rates = Rates(1.87e9, 18.7e9, 100e9, link)
    assert balanced_stride(rates) == LINKS[link]
    assert abs(best_stride(120, SIZE, rates) - LINKS[link]) <= 1


def test_a_link_that_cannot_keep_up_has_no_such_stride():
    with pytest.raises(ValueError, match="the link is the limit"):
        balanced_stride(Rates(1e9, 1e10, 1e11, 1e9))
    with pytest.raises(ValueError, match="stride 1"):
        simulate(4, 1, SIZE, Rates(1e9, 1e10, 1e11, 1e9))
