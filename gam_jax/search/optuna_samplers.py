"""Samplers of Optuna as strategies: `optuna:TPESampler`. Extra `search`."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Sequence
from typing import Any

from gam_jax.config import unknown
from gam_jax.search.space import Point, Space
from gam_jax.search.strategies import Searcher, Strategy, Told
from sharding.errors import UserError

SAMPLERS = ("TPESampler", "NSGAIISampler", "GPSampler")


@dataclasses.dataclass(frozen=True)
class Optuna(Strategy):
    """A sampler of Optuna; every choice is a category to it.

    Attributes:
      sampler: "TPESampler", "NSGAIISampler", or "GPSampler", which needs torch.
    """

    sampler: str = "TPESampler"

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UserError(f"optuna: {unknown(self.sampler, SAMPLERS, 'sampler')}")

    def begin(self, space: Space, seed: int = 0) -> Searcher:
        """See `Strategy`.

        Raises:
          UserError: Optuna, or torch where the sampler needs it, is not installed.
        """
        if importlib.util.find_spec("optuna") is None:
            raise UserError("optuna is not installed: pip install 'gam_jax[search]'")
        if self.sampler == "GPSampler" and importlib.util.find_spec("torch") is None:
            raise UserError("optuna's GPSampler needs torch, which is not installed")
        return _Trials(self.sampler, space, seed)


class _Trials(Searcher):
    def __init__(self, sampler: str, space: Space, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        made = getattr(optuna.samplers, sampler)(seed=seed)
        self._study: Any = optuna.create_study(sampler=made)
        self._failed = optuna.trial.TrialState.FAIL
        kind = optuna.distributions.CategoricalDistribution
        self._choices = {
            choice.path: kind(list(range(len(choice.values)))) for choice in space.choices
        }
        self._waiting: list[Any] = []

    def ask(self, count: int) -> list[Point]:
        trials = [self._study.ask(self._choices) for _ in range(count)]
        self._waiting += trials
        return [tuple(trial.params[path] for path in self._choices) for trial in trials]

    def tell(self, results: Sequence[Told]) -> None:
        trials, self._waiting = self._waiting[: len(results)], self._waiting[len(results) :]
        for trial, result in zip(trials, results, strict=True):
            if math.isinf(result.score):
                self._study.tell(trial, state=self._failed)
            else:
                self._study.tell(trial, result.score)
