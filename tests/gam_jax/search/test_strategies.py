"""Laws of every strategy, and what each by itself does."""

from __future__ import annotations

import importlib.util
import itertools
import math

import numpy as np
import pytest

from gam_jax.search import (
    STRATEGIES,
    Anneal,
    Evolve,
    Optuna,
    Space,
    Told,
    search,
    strategy_of,
)
from sharding.errors import UserError

SPACE = Space.of({"a": [0, 1, 2, 3], "b": [0, 1, 2], "c": [5], "d": [0, 1, 2, 3]})
EACH = [
    "all",
    "random",
    "anneal:steps=60",
    "evolve:pool=8,parents=3",
    "evolve:pool=8,parents=3,references=2,first=12,refresh=4",
    "table:rule=reinforce,count=4",
    "table:rule=ants,count=4,greed=0.2",
    "table:rule=cross_entropy,count=8",
    "table:joint=true,count=4",
    "exact",
    "optuna:TPESampler",
    "optuna:NSGAIISampler",
]
each_strategy = pytest.mark.parametrize("text", EACH)


def cost(point) -> float:
    """A sum over choices, so that every strategy may find its least; some are refused."""
    a, b, _, d = point
    if (a, d) in ((3, 3), (1, 1)):
        return math.inf
    return (a - 2) ** 2 + (b - 1) ** 2 + abs(d - 3) + 1.0


LEAST = min(cost(point) for point in SPACE.points())


def measured(points):
    return [cost(point) for point in points]


def test_the_list_above_has_every_strategy():
    assert {text.partition(":")[0] for text in EACH} == set(STRATEGIES)
    assert importlib.util.find_spec("optuna"), "the extra `search` is missing"


@each_strategy
def test_it_asks_for_points_of_the_space_alike_from_equal_seeds(text):
    runs = []
    for seed in (0, 0, 1):
        searcher = strategy_of(text).begin(SPACE, seed)
        asked = []
        for _ in range(6):
            points = searcher.ask(3)
            assert len(points) <= 3
            assert all(len(point) == 4 for point in points)
            assert all(
                0 <= index < size
                for point in points
                for index, size in zip(point, SPACE.sizes, strict=True)
            )
            assert all(type(index) is int for point in points for index in point)
            searcher.tell([Told(point, cost(point)) for point in points])
            asked += points
        runs.append(asked)
    assert runs[0] == runs[1]
    if text not in ("all", "exact"):
        assert runs[0] != runs[2]


@each_strategy
def test_it_finds_the_least_score_and_measures_nothing_twice(text):
    seen = []

    def measure(points):
        seen.extend(points)
        return measured(points)

    found = search(SPACE, strategy_of(text), measure, SPACE.size, seed=1, batch=4)
    assert len(set(seen)) == len(seen) == len(found.results)
    assert found.best.score == LEAST
    assert [each.point for each in found.results] == seen


@pytest.mark.parametrize("text", ["all", "random"])
def test_these_end_with_every_point(text):
    found = search(SPACE, strategy_of(text), measured, 10**6, batch=5)
    assert sorted(each.point for each in found.results) == sorted(SPACE.points())


def test_a_random_search_is_a_permutation_and_each_point_is_as_likely_at_first():
    space = Space.of({"a": [0, 1, 2]})
    orders = [
        tuple(point[0] for point in strategy_of("random").begin(space, seed).ask(3))
        for seed in range(600)
    ]
    counts = [orders.count(order) for order in itertools.permutations(range(3))]
    assert sum(counts) == 600
    assert max(abs(count - 100) for count in counts) < 40  # four standard deviations


def test_annealing_takes_a_worse_neighbour_as_often_as_its_temperature_says():
    """At T = d / ln 2 half of them."""
    space, taken = Space.of({"a": [0, 1]}), 0
    own = Anneal(steps=10**9, hot=1 / math.log(2), cold=1 / math.log(2))
    for seed in range(400):
        walk = own.begin(space, seed)
        walk.tell([Told((0,), 1.0), Told((1,), 2.0)])
        taken += walk.ask(1) == [(0,)]  # the neighbour of what was taken
    assert abs(taken - 200) < 40
    cold = Anneal(hot=1e-6, cold=1e-6).begin(space)
    cold.tell([Told((0,), 1.0), Told((1,), 2.0)])
    assert cold.ask(1) == [(1,)]


def test_children_are_parents_with_changes_or_a_mixture_of_two():
    space = Space.of({name: [0, 1, 2] for name in "abcdef"})
    first = Evolve(pool=4, parents=1, change=0.0, mix=0.0).begin(space)
    points = first.ask(4)
    first.tell([Told(point, score) for score, point in enumerate(points)])
    for child in first.ask(20):  # a copy would be known: a choice is changed
        assert sum(a != b for a, b in zip(child, points[0], strict=True)) == 1
    zeros, ones = (0,) * 6, (1,) * 6
    second = Evolve(pool=2, parents=1, change=0.0, mix=1.0).begin(space)
    second.ask(2)
    second.tell([Told(zeros, 0.0), Told(ones, 1.0)])
    mixed = [child for child in second.ask(40) if 2 not in child]
    assert {0, 1} == set(np.ravel(mixed).tolist())


def test_references_are_of_the_pool_and_no_parents_and_the_pool_waits():
    """Ranks 11 to 50 of 50, beside parents of ranks 1 to 10."""
    space = Space.of({name: list(range(51)) for name in "abcdef"})
    own = Evolve(50, 10, change=0.0, mix=1.0, references=4, first=60, refresh=50)
    searcher = own.begin(space)
    assert len({*searcher.ask(60)}) == 60  # drawn
    told = [Told((rank,) * 6, float(rank)) for rank in range(51)]
    searcher.tell(told[1:50])
    assert len({child for child in searcher.ask(8) if len({*child}) == 6}) > 4  # no pool yet
    searcher.tell([*told[:1], *told[50:]])
    for child in searcher.ask(200):
        parents = [rank for rank in child if rank < 10]
        assert len({*parents}) <= 1
        assert len({*child} - {*parents}) <= 4
        assert max(child) < 50
    with pytest.raises(UserError, match="only 40 are no parents"):
        Evolve(50, 10, references=41)


def test_a_child_that_waits_for_the_pool_is_changed_again():
    space = Space.of({"a": [0, 1], "b": [0, 1]})
    searcher = Evolve(2, 1, change=1.0, mix=0.0, first=1, refresh=4).begin(space)
    searcher.ask(1)
    searcher.tell([Told((0, 0), 0.0)] * 4)

    def share():
        children = searcher.ask(400)
        return children.count((0, 1)) / len(children)

    assert abs(share() - 3 / 8) < 0.08  # drawn, or what (0, 0) is changed to
    searcher.tell([Told((0, 1), 1.0)])
    assert abs(share() - 1 / 8) < 0.06  # only what (0, 0) is changed to


def test_where_all_of_the_pool_are_parents_there_is_a_second_parent_and_no_reference():
    space = Space.of({name: [0, 1, 2] for name in "abcdef"})
    searcher = Evolve(3, 2, change=0.0, mix=1.0, references=1, first=1).begin(space)
    searcher.ask(1)
    searcher.tell([Told((0,) * 6, 0.0), Told((1,) * 6, 1.0)])
    mixed = [{*child} for child in searcher.ask(40)]
    assert {0, 1} in mixed


def test_equal_candidates_are_measured_once():
    class Same(Space):
        def key(self, point):
            return str(sum(point))

    space, seen = Same.of({"a": [0, 1, 2], "b": [0, 1, 2]}), []

    def measure(points):
        seen.extend(points)
        return [float(sum(point)) for point in points]

    found = search(space, strategy_of("all"), measure, 100, batch=9)
    assert len(seen) == 5
    assert found.best.point == (0, 0)


def test_a_search_without_a_new_candidate_ends():
    space = Space.of({"a": [0]})
    found = search(space, strategy_of("anneal"), lambda points: [1.0] * len(points), 5)
    assert len(found.results) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("anealing", "unknown strategy 'anealing'; did you mean 'anneal'"),
        ("evolve:pol=3", "'pol=3' sets nothing; its settings are pool, parents, change, mix"),
        ("random:seed=3", "which has no settings"),
        ("evolve:pool=x", "pool: expected int, got 'x'"),
        ("evolve:pool=0", "pool=0"),
        ("evolve:pool=2,parents=3", "give at most pool=2"),
        ("anneal:cold=1,hot=0.1", "give at most hot=0.1"),
        ("table:rule=ant", "did you mean 'ants'"),
        ("table:rule=ants,rate=2", "takes a share, at most 1"),
        ("table:count=1", "give 2 or more"),
        ("optuna:TPESample", "did you mean 'TPESampler'"),
    ],
)
def test_what_is_no_strategy_is_one_line(text, message):
    with pytest.raises(UserError, match=message) as error:
        strategy_of(text)
    assert "\n" not in str(error.value)


def test_what_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'gam_jax\[search\]'"):
        Optuna().begin(SPACE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "optuna" or None)
    with pytest.raises(UserError, match="GPSampler needs torch"):
        Optuna("GPSampler").begin(SPACE)


def test_scores_are_numbers_and_refusals_are_infinite():
    with pytest.raises(UserError, match=r"the score of .* is nan"):
        search(SPACE, strategy_of("all"), lambda points: [math.nan] * len(points), 1)
    refused = search(SPACE, strategy_of("all"), lambda points: [math.inf] * len(points), 3)
    with pytest.raises(UserError, match="all 3 candidates were refused"):
        _ = refused.best
