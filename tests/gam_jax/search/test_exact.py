"""The best sum under budgets is that of brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gam_jax.search import (
    Budget,
    Exact,
    Space,
    Told,
    best_sum,
    by_ratio,
    drawn_within,
    layer_by_layer,
)
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


def drawn(seed):
    """A library of five choices and two budgets, which some point holds."""
    random = np.random.default_rng(seed)
    sizes = random.integers(2, 5, 5)
    costs, *uses = ([random.uniform(0, 9, n).tolist() for n in sizes] for _ in range(3))
    some = [int(random.integers(n)) for n in sizes]
    limits = [1.05 * sum(own[i] for own, i in zip(use, some, strict=True)) for use in uses]
    return costs, [Budget(use, limit) for use, limit in zip(uses, limits, strict=True)]


def total(table, point):
    return sum(own[index] for own, index in zip(table, point, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_a_point_that_lies_apart_differs_in_as_many_choices(seed):
    costs, budgets = drawn(seed)
    first, _ = best_sum(costs, budgets)
    points = itertools.product(*(range(len(own)) for own in costs))
    held = [
        total(costs, p)
        for p in points
        if all(total(b.uses, p) <= b.limit for b in budgets)
        and sum(i != j for i, j in zip(p, first, strict=True)) >= 3
    ]
    if not held:
        with pytest.raises(UserError, match="within all budgets"):
            best_sum(costs, budgets, [first], apart=3)
        return
    assert best_sum(costs, budgets, [first], apart=3)[1] == pytest.approx(min(held))


@pytest.mark.parametrize("rule", [by_ratio, layer_by_layer])
def test_greedy_points_hold_the_budgets_and_are_no_better(rule):
    found = 0
    for seed in range(12):
        costs, budgets = drawn(seed)
        try:
            point = rule(costs, budgets)
        except UserError:  # it has found none
            continue
        found += 1
        assert all(total(b.uses, point) <= b.limit * (1 + 1e-6) for b in budgets)
        assert total(costs, point) >= best_sum(costs, budgets)[1] - 1e-9
    assert found >= 6


def test_greedy_rules_do_what_they_say():
    costs = [[0.0, 1.0, 9.0], [0.0, 4.0, 5.0]]
    budget = Budget([[6, 3, 1], [6, 3, 1]], 7)
    assert by_ratio(costs, [budget]) == (1, 1)  # 1 for 3, then 4 for the 2 that are left
    assert layer_by_layer(costs, [budget]) == (1, 1)  # shares of 3.5, and 4 of what is left


def test_drawn_points_hold_the_budgets_and_use_one_of_them_up():
    _, budgets = drawn(3)
    sizes = [len(own) for own in budgets[0].uses]
    points = drawn_within(sizes, budgets, 0, 5, least=0.8)
    assert len(set(points)) == 5
    for point in points:
        shares = [total(b.uses, point) / b.limit for b in budgets]
        assert 0.8 <= max(shares) <= 1 + 1e-6
    with pytest.raises(UserError, match="lower `least`"):
        drawn_within(sizes, budgets, 0, 5000)


def test_notes_of_the_solver_do_not_reach_standard_output(capfd):
    print("before")
    for seed in range(3):
        best_sum(*drawn(seed))
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
