"""Which candidates are tried next: strategies that ask, and are told the scores.

Lower scores are better; a candidate that was refused has the score infinity.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from gam_jax.search.space import Point, Space
from sharding.bounds import Count, Positive, Share, Size, check_bounds
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Told:
    """A candidate and how good it is.

    Attributes:
      point: of the space.
      score: lower is better; infinity where the candidate was refused.
    """

    point: Point
    score: float

    def __post_init__(self) -> None:
        if math.isnan(self.score):
            raise ValueError(f"the score of {self.point} is no number: tell infinity instead")


class Searcher(abc.ABC):
    """A strategy at work in one space. Equal seeds and equal scores: equal questions."""

    @abc.abstractmethod
    def ask(self, count: int) -> list[Point]:
        """The next candidates, at most `count`; none where there is nothing more to ask."""

    def tell(self, results: Sequence[Told]) -> None:
        """How good those are that were asked, in their order; without effect where none counts."""
        del results


class Strategy(abc.ABC):
    """A way to search, with its settings."""

    @abc.abstractmethod
    def begin(self, space: Space, seed: int = 0) -> Searcher:
        """At the beginning of a search.

        Args:
          space: that is searched.
          seed: of all that is drawn.
        """


@dataclasses.dataclass(frozen=True)
class All(Strategy):
    """Every point in turn."""

    def begin(self, space: Space, seed: int = 0) -> Searcher:
        """See `Strategy`; nothing is drawn."""
        return _InTurn(space)


class _InTurn(Searcher):
    def __init__(self, space: Space) -> None:
        self._points = space.points()

    def ask(self, count: int) -> list[Point]:
        return list(itertools.islice(self._points, count))


@dataclasses.dataclass(frozen=True)
class Random(Strategy):
    """Points drawn alike, none twice."""

    def begin(self, space: Space, seed: int = 0) -> Searcher:
        """See `Strategy`."""
        return _Drawn(space, seed)


class _Drawn(Searcher):
    """A permutation of all points, shuffled as far as it is asked (Fisher and Yates)."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._random = space, np.random.default_rng(seed)
        self._moved: dict[int, int] = {}
        self._next = 0

    def ask(self, count: int) -> list[Point]:
        found = []
        for _ in range(min(count, self._space.size - self._next)):
            other = int(self._random.integers(self._next, self._space.size))
            drawn = self._moved.get(other, other)
            self._moved[other] = self._moved.get(self._next, self._next)
            found.append(self._space.point(drawn))
            self._next += 1
        return found


@dataclasses.dataclass(frozen=True)
class Anneal(Strategy):
    """A walk from neighbour to neighbour that goes uphill ever less often.

    A worse neighbour is taken with probability exp(-d / T), d being how much worse it is as a
    share of the best score; T falls from `hot` to `cold` by equal factors.

    Attributes:
      steps: neighbours until T is `cold`.
      hot: T at first.
      cold: T at last.
    """

    steps: Size = 200
    hot: Positive = 0.3
    cold: Positive = 0.001

    def __post_init__(self) -> None:
        check_bounds(self, "anneal")
        if self.cold > self.hot:
            raise UserError(f"anneal.cold={self.cold}: give at most hot={self.hot}")

    def begin(self, space: Space, seed: int = 0) -> Searcher:
        """See `Strategy`; the first point is drawn."""
        return _Walk(self, space, seed)


class _Walk(Searcher):
    def __init__(self, settings: Anneal, space: Space, seed: int) -> None:
        self._own, self._space = settings, space
        self._random = np.random.default_rng(seed)
        self._here: Told | None = None
        self._least, self._told = math.inf, 0

    def ask(self, count: int) -> list[Point]:
        if self._here is None or math.isinf(self._here.score):
            return [self._space.sample(self._random) for _ in range(count)]
        return [_moved(self._space, self._here.point, self._random) for _ in range(count)]

    def tell(self, results: Sequence[Told]) -> None:
        for result in results:
            if self._here is None or self._taken(self._here.score, result.score):
                self._here = result
            self._least = min(self._least, result.score)
            self._told += 1

    def _taken(self, now: float, new: float) -> bool:
        if new <= now:
            return True
        if math.isinf(new):
            return False
        share = min(self._told / max(self._own.steps - 1, 1), 1.0)
        heat = self._own.hot * (self._own.cold / self._own.hot) ** share
        scale = abs(self._least) or 1.0
        return self._random.random() < math.exp(-(new - now) / scale / heat)


@dataclasses.dataclass(frozen=True)
class Evolve(Strategy):
    """Children of the best so far, by change and by exchange.

    The first candidates are drawn. A child has a parent among the `parents` best and, with
    probability `mix`, a second one among the `pool` best, from which it has each choice with
    probability 1/2. Then each choice is drawn anew with probability `change`. If that gives a
    candidate that is in the pool or waits for it, one choice is changed to another value.

    With `references`, so many of the pool that are no parents stand in the place of the second
    parent, and each exchanged choice is of one of them (ASI-Arch, arXiv 2507.18074: parents of
    ranks 1 to 10, four references of ranks 11 to 50, and a language model that reads them). Where
    fewer are there, these are all; where none is, there is a second parent as without references.

    Attributes:
      pool: the best that are kept.
      parents: of them, those that have children.
      change: of each choice.
      mix: of a second parent, or of references.
      references: for a child; 0 for a second parent.
      first: candidates that are drawn before there are children; 0 for `pool`.
      refresh: results after which the pool is made anew; until then they wait for it.
    """

    pool: Size = 16
    parents: Size = 4
    change: Share = 0.2
    mix: Share = 0.5
    references: Count = 0
    first: Count = 0
    refresh: Size = 1

    def __post_init__(self) -> None:
        check_bounds(self, "evolve")
        if self.parents > self.pool:
            raise UserError(f"evolve.parents={self.parents}: give at most pool={self.pool}")
        if self.references > self.pool - self.parents:
            raise UserError(
                f"evolve.references={self.references}: of pool={self.pool} only "
                f"{self.pool - self.parents} are no parents"
            )

    def begin(self, space: Space, seed: int = 0) -> Searcher:
        """See `Strategy`."""
        return _Pool(self, space, seed)


class _Pool(Searcher):
    def __init__(self, settings: Evolve, space: Space, seed: int) -> None:
        self._own, self._space = settings, space
        self._random = np.random.default_rng(seed)
        self._asked = 0
        self._best: list[Told] = []
        self._waiting: list[Told] = []

    def ask(self, count: int) -> list[Point]:
        found, first = [], self._own.first or self._own.pool
        for _ in range(count):
            new = self._asked < first or not self._best
            found.append(self._space.sample(self._random) if new else self._child())
            self._asked += 1
        return found

    def tell(self, results: Sequence[Told]) -> None:
        for result in results:
            self._waiting.append(result)
            if len(self._waiting) >= self._own.refresh:
                self._renew()

    def _renew(self) -> None:
        every = (*self._best, *self._waiting)
        kept = {each.point: each for each in every if math.isfinite(each.score)}
        self._best = sorted(kept.values(), key=lambda each: (each.score, each.point))
        del self._best[self._own.pool :]
        self._waiting.clear()

    def _child(self) -> Point:
        child = np.array(self._one_of(self._own.parents))
        if self._random.random() < self._own.mix:
            taken = self._random.random(len(child)) < 0.5
            child = np.where(taken, self._other(len(child)), child)
        drawn = np.array(self._space.sample(self._random))
        changed = np.where(self._random.random(len(child)) < self._own.change, drawn, child)
        point = tuple(int(index) for index in changed)
        known = {each.point for each in (*self._best, *self._waiting)}
        return _moved(self._space, point, self._random) if point in known else point

    def _other(self, choices: int) -> Sequence[int]:
        """Choices of references, each of any of them; of a second parent where there are none."""
        own, rest = self._own, self._best[self._own.parents :]
        if not (own.references and rest):
            return self._one_of(own.pool)
        drawn = self._random.permutation(len(rest))[: own.references]
        of = drawn[self._random.integers(len(drawn), size=choices)]
        return [rest[int(number)].point[place] for place, number in enumerate(of)]

    def _one_of(self, count: int) -> Point:
        return self._best[int(self._random.integers(min(count, len(self._best))))].point


def _moved(space: Space, point: Point, random: np.random.Generator) -> Point:
    """A neighbour: a choice that has several values, and another one of them."""
    free = [place for place, size in enumerate(space.sizes) if size > 1]
    if not free:
        return point
    place = free[int(random.integers(len(free)))]
    index = int(random.integers(space.sizes[place] - 1))
    index += index >= point[place]
    return (*point[:place], index, *point[place + 1 :])
