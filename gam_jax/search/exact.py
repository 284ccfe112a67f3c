"""The best of all combinations where scores add up: one choice a layer, under budgets.

It is a mixed integer linear program, solved to the end by HiGHS (`scipy.optimize.milp`). Puzzle
(arXiv 2411.19146) chooses the blocks of a model so.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import math
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gam_jax.search.budgets import Budget, Table, check_budgets, check_costs
from gam_jax.search.space import Point, Space
from gam_jax.search.strategies import Searcher, Strategy, Told
from sharding.errors import UserError

_REDIRECTED = threading.Lock()
"""Held while standard output is standard error, which is so for the whole process."""


def best_sum(
    costs: Table,
    budgets: Sequence[Budget] = (),
    without: Sequence[Point] = (),
    apart: int = 1,
) -> tuple[Point, float]:
    """The point of the least sum of costs.

    Args:
      costs: of each value of each choice; infinite where a value cannot be.
      budgets: each is held.
      without: points that are left out.
      apart: choices at least in which it differs from each of them, from 1 to all.

    Raises:
      UserError: there is no such point, a table has another shape or a number that makes no sense,
        a point to leave out is none, or `apart` is not from 1 to the number of choices.
    """
    from scipy import optimize, sparse  # late: it takes a third of a second to import

    check_costs(costs)
    sizes = [len(own) for own in costs]
    check_budgets(sizes, budgets)
    _check_apart(sizes, without, apart)
    flat = np.array([cost for own in costs for cost in own], float)
    one = np.repeat(np.arange(len(sizes)), sizes)
    rows = [(one == choice, 1.0, 1.0) for choice in range(len(sizes))]
    for budget in budgets:
        uses = np.array([use for own in budget.uses for use in own], float)
        rows.append((uses, -np.inf, float(budget.limit)))
    starts = np.cumsum([0, *sizes[:-1]])
    for point in without:
        taken = np.zeros(len(flat))
        taken[starts + np.asarray(point)] = 1
        rows.append((taken, -np.inf, float(len(sizes) - apart)))
    matrix = sparse.csr_array(np.array([row for row, _, _ in rows], float))
    low: Any = [row[1] for row in rows]
    high: Any = [row[2] for row in rows]
    there = np.isfinite(flat)
    most: Any = there.astype(float)
    with _notes_to_stderr():
        found = optimize.milp(
            np.where(there, flat, 0.0),
            constraints=optimize.LinearConstraint(matrix, low, high),
            integrality=np.ones(len(flat)),
            bounds=optimize.Bounds(0, most),
            options={"mip_rel_gap": 0.0},
        )
    if found.x is None:
        raise UserError("exact: no choice is within all budgets: raise a limit")
    point = tuple(
        int(np.argmax(found.x[start : start + size]))
        for start, size in zip(starts, sizes, strict=True)
    )
    return point, float(sum(own[index] for own, index in zip(costs, point, strict=True)))


def _check_apart(sizes: Sequence[int], without: Sequence[Point], apart: int) -> None:
    if not 1 <= apart <= len(sizes):
        raise UserError(f"exact: apart={apart}: give 1 to {len(sizes)}, the number of choices")
    for point in without:
        if len(point) != len(sizes) or not all(
            0 <= index < size for index, size in zip(point, sizes, strict=True)
        ):
            raise UserError(f"exact: {tuple(point)} is no point of choices of {sizes} values")


@contextlib.contextmanager
def _notes_to_stderr() -> Iterator[None]:
    """HiGHS writes notes to standard output whatever it is told, where a command prints JSON.

    One thread at a time: of two, the second would take what the first has put there for its own.
    """
    flush = ctypes.CDLL(None).fflush  # of C's own buffers
    with _REDIRECTED:
        try:
            kept = os.dup(1)
        except OSError:  # there is no standard output
            yield
            return
        if sys.stdout is not None:
            sys.stdout.flush()
        flush(None)
        os.dup2(2, 1)
        try:
            yield
        finally:
            flush(None)
            os.dup2(kept, 1)
            os.close(kept)


@dataclasses.dataclass(frozen=True)
class Exact(Strategy):
    """Scores every change of one choice, then asks for the best sums of them, the best first.

    A value is worth what it changes the score of the first point by, alone. Where scores do add
    up, the first point after these is the best of all.

    Attributes:
      budgets: that every point after these holds.
    """

    budgets: tuple[Budget, ...] = ()

    def begin(self, space: Space, seed: int = 0) -> Searcher:
        """See `Strategy`; the first point has the first value of each choice. Draws nothing.

        Raises:
          UserError: a budget of another shape.
        """
        check_budgets(space.sizes, self.budgets)
        return _Sums(self, space)


class _Sums(Searcher):
    def __init__(self, settings: Exact, space: Space) -> None:
        self._own, self._space = settings, space
        first = tuple(0 for _ in space.sizes)
        self._waiting = [first, *space.neighbours(first)]
        self._alone = len(self._waiting)
        self._told: list[Told] = []
        self._asked: list[Point] = []

    def ask(self, count: int) -> list[Point]:
        if not self._waiting and len(self._told) >= self._alone:
            self._waiting = self._sums(count)
        found, self._waiting = self._waiting[:count], self._waiting[count:]
        self._asked += found
        return found

    def tell(self, results: Sequence[Told]) -> None:
        self._told += results

    def _sums(self, count: int) -> list[Point]:
        base = self._told[0].score
        if math.isinf(base):
            raise UserError("exact: the first value of each choice together must be a candidate")
        costs = [[0.0] * size for size in self._space.sizes]
        for each in self._told[1 : self._alone]:
            place = next(place for place, index in enumerate(each.point) if index)
            costs[place][each.point[place]] = each.score - base
        found: list[Point] = []
        for _ in range(count):
            try:
                point, _ = best_sum(costs, self._own.budgets, [*self._asked, *found])
            except UserError:
                break
            found.append(point)
        return found
