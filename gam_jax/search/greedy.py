"""What an exact search is held against: choices under budgets, made one after another or drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gam_jax.search.exact import Budget
from gam_jax.search.space import Point
from sharding.errors import UserError

ROOM = 1e-9
"""By what part sums may exceed a limit: they are rounded."""
DRAWS = 10_000
"""Draws after which there is taken to be no such point."""

Table = Sequence[Sequence[float]]
"""A number for each value of each choice."""


def layer_by_layer(costs: Table, budgets: Sequence[Budget]) -> Point:
    """Each choice in turn has an equal share of what is left of each budget.

    The choice whose values cost least on average comes first. Of the values within its share each
    takes the one of the least cost; where none is, the one that exceeds it least.

    Args:
      costs: of each value of each choice.
      budgets: see `Budget`.

    Raises:
      UserError: what is found exceeds a budget.
    """
    order = np.argsort([float(np.mean(own)) for own in costs], kind="stable")
    limits = np.array([budget.limit for budget in budgets], float)
    left = limits.copy()
    found = [0] * len(costs)
    for turn, place in enumerate(map(int, order)):
        uses = np.array([budget.uses[place] for budget in budgets], float)  # [budgets, values]
        share = left / (len(costs) - turn)
        over = np.max((uses - share[:, None]) / limits[:, None], axis=0, initial=-math.inf)
        within = over <= ROOM
        ranked = np.where(within, np.asarray(costs[place], float), math.inf)
        found[place] = int(np.argmin(ranked if within.any() else over))
        left -= uses[:, found[place]]
    return _checked(tuple(found), budgets, "layer by layer")


def by_ratio(costs: Table, budgets: Sequence[Budget]) -> Point:
    """From the least costs, the change that adds least cost for what it saves, until all fit.

    What a change saves is how much less the sums exceed their limits by, each as a part of its
    limit.

    Args:
      costs: of each value of each choice.
      budgets: see `Budget`.

    Raises:
      UserError: no change saves anything, and a budget is still exceeded.
    """
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
      budgets: see `Budget`.
      seed: of the draws.
      count: how many, all unlike.
      least: the part of a limit that a point uses of at least one budget.

    Raises:
      UserError: `DRAWS` draws have found fewer.
    """
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
