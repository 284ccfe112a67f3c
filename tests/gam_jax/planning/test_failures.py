"""The period with the least loss, and flows on the fullest path, against what is counted."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.planning.failures import Failures, most_on_a_path, planned_on_a_path, slowdown
from sharding.errors import UserError

seconds = st.floats(1e-3, 1e6)


@given(seconds, seconds, st.floats(0.1, 10))
def test_no_period_loses_less_than_the_best_one(between, save, factor):
    failures = Failures(between, detect=1.0, save=save)
    best = failures.best_period
    assert failures.lost(best) <= failures.lost(best * factor) * (1 + 1e-12)
    assert best == pytest.approx(math.sqrt(2 * save * between))


def test_what_is_lost_is_half_a_period_what_stands_still_and_the_checkpoints():
    failures = Failures(100.0, detect=3.0, isolate=2.0, restart=1.0, save=0.5)
    assert failures.lost(10.0) == pytest.approx((5 + 6) / 100 + 0.05)


@pytest.mark.parametrize("wrong", [{"between": 0}, {"between": 1.0, "save": -1}])
def test_times_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match=r"Failures\."):
        Failures(**wrong)
    with pytest.raises(UserError, match="period"):
        Failures(1.0).lost(0.0)


@pytest.mark.parametrize(("flows", "paths"), [(1, 3), (4, 3), (5, 2), (3, 5)])
def test_the_fullest_path_is_that_of_all_ways_counted_one_by_one(flows, paths):
    ways = list(itertools.product(range(paths), repeat=flows))
    mean = sum(max(way.count(path) for path in range(paths)) for way in ways) / len(ways)
    assert most_on_a_path(flows, paths) == pytest.approx(mean)


@given(st.integers(1, 40))
def test_over_two_paths_it_is_the_closed_form(flows):
    """F / 2 and the mean distance of a binomial from its middle."""
    distance = flows * math.comb(flows - 1, flows // 2) / 2**flows
    assert most_on_a_path(flows, 2) == pytest.approx(flows / 2 + distance)


@given(st.integers(1, 24), st.integers(1, 8))
def test_planned_paths_are_never_slower_than_hashed_ones(flows, paths):
    hashed, planned = slowdown(flows, paths), slowdown(flows, paths, planned=True)
    assert hashed >= planned * (1 - 1e-12)
    assert planned >= 1
    assert planned_on_a_path(flows, paths) * paths >= flows


def test_one_flow_takes_one_path_either_way():
    assert slowdown(1, 7) == slowdown(1, 7, planned=True) == 7
    with pytest.raises(UserError, match="flows"):
        slowdown(0, 3)
