"""The best sum under budgets is that of brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gam_jax.search import Budget, Exact, Space, Told, best_sum
from sharding.errors import UserError


def brute(costs, budgets, without=()):
    points = itertools.product(*(range(len(own)) for own in costs))

    def total(table, point):
        return sum(own[index] for own, index in zip(table, point, strict=True))

    held = [
        point
        for point in points
        if all(total(budget.uses, point) <= budget.limit for budget in budgets)
        and point not in without
    ]
    return min((total(costs, point) for point in held), default=None)


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_least_of_all_points_within_all_budgets(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 5, 5)
    costs = [random.normal(size=n).tolist() for n in sizes]
    costs[0][0] = np.inf if sizes[0] > 1 else 0.0
    budgets = [
        Budget([random.integers(1, 9, n).tolist() for n in sizes], limit) for limit in (20, 24)
    ]
    wanted = brute(costs, budgets)
    if wanted is None:
        with pytest.raises(UserError, match="within all budgets"):
            best_sum(costs, budgets)
        return
    found, total = best_sum(costs, budgets)
    assert total == pytest.approx(wanted)
    second = brute(costs, budgets, [found])
    if second is not None and np.isfinite(second):
        assert best_sum(costs, budgets, [found])[1] == pytest.approx(second)


def test_without_a_point_within_the_budgets_it_says_so():
    with pytest.raises(UserError, match="raise a limit"):
        best_sum([[1.0]], [Budget([[5.0]], 4.0)])
    with pytest.raises(UserError, match="what each value of each choice uses"):
        best_sum([[1.0]], [Budget([[5.0, 1.0]], 4.0)])


def test_as_a_strategy_it_asks_for_each_change_alone_and_then_for_the_best_sums():
    space = Space.of({"a": [0, 1, 2], "b": [0, 1], "c": [0, 1, 2]})
    worth = ([0.0, -1.0, 2.0], [0.0, -3.0], [0.0, 1.0, -0.5])

    def cost(point):
        return 10 + sum(own[index] for own, index in zip(worth, point, strict=True))

    searcher, asked = Exact().begin(space), []
    while points := searcher.ask(4):
        asked += points
        searcher.tell([Told(point, cost(point)) for point in points])
    assert sorted(asked) == sorted(space.points())
    after = [cost(point) for point in asked[6:]]
    assert asked[6] == (1, 1, 2)
    assert after == sorted(after)
