"""The best sum under budgets is that of brute force."""

from __future__ import annotations

import itertools
import os
import threading

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
from gam_jax.search.exact import _notes_to_stderr
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


def test_without_a_standard_output_it_solves_too():
    kept = os.dup(1)
    os.close(1)
    try:
        point, _ = best_sum([[1.0, 0.0]])
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    assert point == (1,)


def test_two_threads_that_solve_at_once_leave_standard_output_where_it_was(capfd):
    """The second one would take standard error for it, and put that back."""
    first_left, second_there = threading.Event(), threading.Event()

    def second():
        with _notes_to_stderr():
            second_there.set()
            first_left.wait(10)

    before = os.fstat(1).st_ino
    other = threading.Thread(target=second)
    with _notes_to_stderr():
        other.start()
        second_there.wait(0.2)
    first_left.set()
    other.join()
    assert os.fstat(1).st_ino == before


USES = Budget([[1.0, 2.0], [1.0, 2.0]], 3.0)
RULES = [best_sum, by_ratio, layer_by_layer]


@pytest.mark.parametrize("rule", RULES)
def test_tables_that_make_no_sense_are_refused_by_name(rule):
    for costs, message in (
        ([], "there is nothing to choose"),
        ([[0.0, 1.0], []], "no value of choice 1 can be"),
        ([[0.0, 1.0], [np.inf, np.inf]], "no value of choice 1 can be"),
        ([[0.0, np.nan], [0.0, 1.0]], "choice 0 has .*infinity where a value cannot be"),
        ([[0.0, -np.inf], [0.0, 1.0]], "choice 0 has .*infinity where a value cannot be"),
        ([[0.0, 1.0], [0.0]], r"budget 0: .*\[2, 1\] numbers, got \[2, 2\]"),
        ([[0.0, 1.0]], r"budget 0: .*\[2\] numbers, got \[2, 2\]"),
    ):
        with pytest.raises(UserError, match=message):
            rule(costs, [USES])
    with pytest.raises(UserError, match=r"choice 1 uses .*give finite numbers"):
        Budget([[1.0], [np.inf]], 3.0)
    with pytest.raises(UserError, match="limit=nan: give a finite number"):
        Budget([[1.0]], np.nan)


@pytest.mark.parametrize("rule", RULES)
def test_without_budgets_each_choice_has_its_least_cost(rule):
    found = rule([[2.0, 1.0], [0.0, 5.0, np.inf]], [])
    assert (found[0] if rule is best_sum else found) == (1, 0)


def test_a_limit_of_0_is_held_exactly_and_refused_where_parts_of_it_are_taken():
    nothing = Budget([[0.0, 1.0], [0.0, 1.0]], 0.0)
    assert best_sum([[1.0, 0.0], [1.0, 0.0]], [nothing]) == ((0, 0), 2.0)
    for rule in (by_ratio, layer_by_layer, lambda costs, own: drawn_within([2, 2], own, 0, 1)):
        with pytest.raises(UserError, match=r"budget 0: limit=0\.0: .*give one above 0"):
            rule([[1.0, 0.0], [1.0, 0.0]], [nothing])


def test_layer_by_layer_never_takes_a_value_that_cannot_be():
    """Within the share of the first choice there is none but value 0, which cannot be."""
    costs, budget = [[np.inf, 0.0, 0.0], [0.0, 1.0]], Budget([[1, 4, 5], [0, 0]], 6)
    assert layer_by_layer(costs, [budget]) == (1, 0)


def test_points_to_leave_out_and_how_far_apart_are_checked():
    costs = [[0.0, 1.0], [0.0, 1.0, 2.0]]
    for apart in (0, 3):
        with pytest.raises(UserError, match=f"apart={apart}: give 1 to 2"):
            best_sum(costs, (), [(0, 0)], apart)
    for point in ((0,), (0, 3), (-1, 0)):
        with pytest.raises(UserError, match=r"is no point of choices of \[2, 3\] values"):
            best_sum(costs, (), [point])


def test_a_search_with_budgets_of_another_space_is_refused_as_it_begins():
    with pytest.raises(UserError, match="budget 0: "):
        Exact((USES,)).begin(Space.of({"a": [0, 1], "b": [0, 1, 2]}))


@pytest.mark.parametrize(
    ("sizes", "budgets", "count", "least", "message"),
    [
        ([2, 2], [USES], 0, 0.9, "count=0: give at least 1"),
        ([2, 2], [USES], 1, float("nan"), "least=nan: give a part"),
        ([2, 2], [], 1, 0.9, "give at least one"),
        ([], [], 1, 0.9, r"sizes=\[\]"),
        ([2, 0], [USES], 1, 0.9, r"sizes=\[2, 0\]"),
        ([2, 3], [USES], 1, 0.9, "budget 0: "),
    ],
)
def test_draws_that_make_no_sense_are_refused_by_name(sizes, budgets, count, least, message):
    with pytest.raises(UserError, match=message):
        drawn_within(sizes, budgets, 0, count, least)
