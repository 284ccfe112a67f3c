"""A search: what a strategy asks is measured, and told to it; equal candidates once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from gam_jax.config import from_dict, unknown
from gam_jax.search.exact import Exact
from gam_jax.search.optuna_samplers import Optuna
from gam_jax.search.space import Point, Space
from gam_jax.search.strategies import All, Anneal, Evolve, Random, Strategy, Told
from gam_jax.search.tables import TableSearch
from sharding.errors import UserError

STRATEGIES: Mapping[str, type[Strategy]] = {
    "all": All,
    "random": Random,
    "anneal": Anneal,
    "evolve": Evolve,
    "table": TableSearch,
    "exact": Exact,
    "optuna": Optuna,
}
"""By the name that `strategy_of` takes."""
IDLE = 200
"""Rounds without a new candidate after which a search ends."""


def strategy_of(text: str) -> Strategy:
    """From a name and its settings: `random`, `evolve:pool=8,parents=2`, `optuna:TPESampler`.

    Raises:
      UserError: an unknown strategy or setting, or a value that is refused.
    """
    name, _, more = text.partition(":")
    if name not in STRATEGIES:
        raise UserError(f"strategy: {unknown(name, STRATEGIES, 'strategy')}")
    kind = STRATEGIES[name]
    if kind is Optuna:
        return Optuna(more or "TPESampler")
    fields = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values = {}
    for word in filter(None, more.split(",")):
        field, sign, value = word.partition("=")
        if not sign or field not in fields or field == "budgets":
            own = [each for each in fields if each != "budgets"]
            valid = f"; its settings are {', '.join(own)}" if own else ", which has no settings"
            raise UserError(f"strategy {name}: '{word}' sets nothing{valid}")
        values[field] = _value(value)
    return from_dict(kind, values, f"strategy {name}")


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclasses.dataclass(frozen=True)
class Searched:
    """What a search has measured.

    Attributes:
      results: each candidate once, in the order in which they were asked.
      rounds: how often the strategy was asked.
    """

    results: tuple[Told, ...]
    rounds: int

    @property
    def best(self) -> Told:
        """The least score, of equal ones the first.

        Raises:
          UserError: every candidate was refused.
        """
        found = min(self.results, key=lambda each: each.score, default=None)
        if found is None or math.isinf(found.score):
            raise UserError(f"search: all {len(self.results)} candidates were refused")
        return found


def search(
    space: Space,
    strategy: Strategy,
    measure: Callable[[Sequence[Point]], Sequence[float]],
    trials: int,
    seed: int = 0,
    batch: int = 1,
) -> Searched:
    """Measures up to `trials` candidates.

    Args:
      space: that is searched.
      strategy: that asks.
      measure: of new candidates, none equal to another or to an earlier one: their scores, lower
        is better, infinity where a candidate is refused.
      trials: candidates that are measured at most.
      seed: of the strategy.
      batch: candidates that are asked at once.

    Returns:
      What was measured. The search ends early where the strategy has nothing to ask, or has asked
      for what is known `IDLE` times in a row.

    Raises:
      UserError: a score that is no number.
    """
    searcher = strategy.begin(space, seed)
    known: dict[str, float] = {}
    results: list[Told] = []
    rounds = idle = 0
    while len(results) < trials and idle < IDLE:
        points = searcher.ask(min(batch, trials - len(results)))
        if not points:
            break
        keys = [space.key(point) for point in points]
        new = {key: p for key, p in zip(keys, points, strict=True) if key not in known}
        scores = [float(score) for score in measure(list(new.values()))] if new else []
        for (key, point), score in zip(new.items(), scores, strict=True):
            if math.isnan(score) or score == -math.inf:
                raise UserError(f"search: the score of {space.values(point)} is {score}")
            known[key] = score
            results.append(Told(point, score))
        searcher.tell([Told(p, known[key]) for key, p in zip(keys, points, strict=True)])
        rounds, idle = rounds + 1, 0 if new else idle + 1
    return Searched(tuple(results), rounds)
