"""Layers dealt out to stages: never worse than any other way, and the published rule beside it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.errors import UserError
from sharding.pipeline.balance import balance, floor_rule, slowest, split

SPEEDS = st.lists(st.sampled_from((0.5, 1.0, 1.6, 1.97, 3.0)), min_size=1, max_size=4)


def every_way(layers, stages):
    for cuts in itertools.combinations(range(1, layers), stages - 1):
        yield tuple(b - a for a, b in itertools.pairwise((0, *cuts, layers)))


@given(SPEEDS, st.lists(st.sampled_from((0.0, 1.0, 2.0, 3.5)), min_size=4, max_size=12))
def test_no_other_way_has_a_faster_slowest_stage(speeds, costs):
    found = balance(costs, speeds)
    best = min(slowest(costs, speeds, way) for way in every_way(len(costs), len(speeds)))
    assert slowest(costs, speeds, found) == pytest.approx(best)
    assert sum(found) == len(costs)
    assert min(found) >= 1


def test_24_layers_on_4_stages_of_unlike_speeds():
    costs, speeds = [1.0 + i % 5 for i in range(24)], (1.0, 1.97, 1.6, 0.7)
    best = min(slowest(costs, speeds, way) for way in every_way(24, 4))
    assert slowest(costs, speeds, balance(costs, speeds)) == pytest.approx(best)


def test_published_splits():
    """Holmes's recipes, 30 and 48 layers at 197:160; torchgpipe's example of costs 1 to 6."""
    assert floor_rule(30, (197, 160)) == (16, 14)
    assert floor_rule(48, (197, 160)) == (26, 22)
    assert split((1, 2, 3, 4, 5, 6), balance((1, 2, 3, 4, 5, 6), (1, 1))) == [[1, 2, 3, 4], [5, 6]]


@given(SPEEDS, st.integers(4, 40))
def test_never_slower_than_the_published_rule_or_equal_stages(speeds, layers):
    stages, costs = len(speeds), [1.0] * layers
    best = slowest(costs, speeds, balance(costs, speeds))
    equal = tuple(layers // stages + (r < layers % stages) for r in range(stages))
    assert sum(floor_rule(layers, speeds)) == layers
    for other in (floor_rule(layers, speeds), equal):
        assert best <= slowest(costs, speeds, other) + 1e-9


@given(st.integers(1, 4), st.integers(1, 5))
def test_equal_speeds_give_equal_stages(stages, each):
    assert balance([1.0] * (stages * each), [2.0] * stages) == (each,) * stages


@pytest.mark.parametrize(
    ("costs", "speeds", "says"),
    [
        ([1.0], [1, 1], "1 layers cannot be dealt to 2 stages"),
        ([1.0, 1.0], [1, 0], "they must be above 0"),
        ([1.0, 1.0], [1, float("nan")], "they must be above 0"),
        ([1.0, -1.0], [1, 1], "must not be negative"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(costs, speeds, says):
    with pytest.raises(UserError, match=says):
        balance(costs, speeds)
