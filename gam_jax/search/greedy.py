"""What an exact search is held against: choices under budgets, made one after another or drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gam_jax.search.budgets import Budget, Table, check_budgets, check_costs
from gam_jax.search.space import Point
from sharding.errors import UserError

ROOM = 1e-9
"""By what part sums may exceed a limit: they are rounded."""
DRAWS = 10_000
"""Draws after which there is taken to be no such point."""


def layer_by_layer(costs: Table, budgets: Sequence[Budget]) -> Point:
    """Each choice in turn has an equal share of what is left of each budget.

    The choice whose values cost least on average, of those that can be, comes first. Of the values
    within its share each takes the one of the least cost; where none is, the one that exceeds it
    least.

    Args:
      costs: of each value of each choice; infinite where a value cannot be, which is never taken.
      budgets: see `Budget`; limits are above 0. None: each choice has its least cost.

    Raises:
      UserError: what is found exceeds a budget; a table has another shape or a number that makes
        no sense.
    """
    _check(costs, budgets)
    means = [np.mean([cost for cost in own if math.isfinite(cost)]) for own in costs]
    order = np.argsort(means, kind="stable")
    limits = np.array([budget.limit for budget in budgets], float)
    left = limits.copy()
    found = [0] * len(costs)
    for turn, place in enumerate(map(int, order)):
        own = np.asarray(costs[place], float)
        uses = np.array([budget.uses[place] for budget in budgets], float)
        uses = uses.reshape(len(budgets), len(own))
        share = left / (len(costs) - turn)
        over = np.max((uses - share[:, None]) / limits[:, None], axis=0, initial=-math.inf)
        over = np.where(np.isfinite(own), over, math.inf)
        within = over <= ROOM
        found[place] = int(np.argmin(np.where(within, own, math.inf) if within.any() else over))
        left -= uses[:, found[place]]
    return _checked(tuple(found), budgets, "layer by layer")


def by_ratio(costs: Table, budgets: Sequence[Budget]) -> Point:
    """From the least costs, the change that adds least cost for what it saves, until all fit.

    What a change saves is how much less the sums exceed their limits by, each as a part of its
    limit.

    Args:
      costs: of each value of each choice; infinite where a value cannot be, which is never taken.
      budgets: see `Budget`; limits are above 0.

    Raises:
      UserError: no change saves anything, and a budget is still exceeded; a table has another shape
        or a number that makes no sense.
    """
    _check(costs, budgets)
    point = [int(np.argmin(own)) for own in costs]
    used = [_used(point, budget) for budget in budgets]
    while (excess := _excess(used, budgets)) > 0:
        best: tuple[float, int, int, list[float]] | None = None
        for place, own in enumerate(costs):
            now = point[place]
            for value, cost in enumerate(own):
                after = [
                    total + budget.uses[place][value] - budget.uses[place][now]
                    for total, budget in zip(used, budgets, strict=True)
                ]
                saved = excess - _excess(after, budgets)
                if saved > ROOM and math.isfinite(cost):
                    rank = ((cost - own[now]) / saved, place, value, after)
                    best = rank if best is None else min(best, rank)
        if best is None:
            raise UserError("greedy: no change is left that saves anything: raise a limit")
        _, place, value, used = best
        point[place] = value
    return tuple(point)


def drawn_within(
    sizes: Sequence[int], budgets: Sequence[Budget], seed: int, count: int, least: float = 0.9
) -> list[Point]:
    """Points drawn alike among those that hold all budgets and use up `least` of one.

    Args:
      sizes: values of each choice.
      budgets: see `Budget`; at least one, and limits are above 0.
      seed: of the draws.
      count: how many, all unlike; at least 1.
      least: the part of a limit that a point uses of at least one budget, from 0 to 1.

    Raises:
      UserError: `DRAWS` draws have found fewer; a number or a shape that makes no sense.
    """
    if count < 1:
        raise UserError(f"drawn_within: count={count}: give at least 1")
    if not 0 <= least <= 1:
        raise UserError(f"drawn_within: least={least}: give a part of a limit, from 0 to 1")
    if len(sizes) == 0 or min(sizes) < 1:
        raise UserError(f"drawn_within: sizes={[*sizes]}: give how many values each choice has")
    if not budgets:
        raise UserError("drawn_within: there is no budget to use up: give at least one")
    check_budgets(sizes, budgets, positive=True)
    random = np.random.default_rng(seed)
    found: dict[Point, None] = {}
    for _ in range(DRAWS):
        point = tuple(int(random.integers(size)) for size in sizes)
        shares = [_used(point, budget) / budget.limit for budget in budgets]
        if max(shares) <= 1 + ROOM and max(shares) >= least:
            found[point] = None
        if len(found) == count:
            return list(found)
    raise UserError(f"{DRAWS:,} draws have found {len(found)} of {count} points: lower `least`")


def _check(costs: Table, budgets: Sequence[Budget]) -> None:
    check_costs(costs)
    check_budgets([len(own) for own in costs], budgets, positive=True)


def _used(point: Sequence[int], budget: Budget) -> float:
    return sum(own[index] for own, index in zip(budget.uses, point, strict=True))


def _excess(used: Sequence[float], budgets: Sequence[Budget]) -> float:
    """By what parts of their limits sums exceed these, all together."""
    parts = (total / budget.limit - 1 for total, budget in zip(used, budgets, strict=True))
    return sum(part for part in parts if part > ROOM)


def _checked(point: Point, budgets: Sequence[Budget], what: str) -> Point:
    if _excess([_used(point, budget) for budget in budgets], budgets) > 0:
        raise UserError(f"greedy, {what}: what is found exceeds a budget: raise a limit")
    return point
