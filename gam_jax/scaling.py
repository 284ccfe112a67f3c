"""Laws of how a loss falls with parameters and parallel streams, fitted to tables of runs.

Source: Parallel Scaling Law for Language Models (ParScale, arXiv 2505.10475): P streams act like
parameters multiplied by k ln P + 1. Rivals are fitted beside it, and compared by what they cost.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import optimize

from sharding.errors import UserError

DELTA = 1e-3
"""Where the Huber loss turns from a square to a line, in nats of log loss."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One trained model.

    Attributes:
      params: N, those that the law counts (prefixes and aggregator among them).
      streams: P.
      loss: nats per token.
    """

    params: float
    streams: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Law:
    """A formula with free numbers, all positive.

    Attributes:
      name: how tables call it.
      formula: for people.
      names: of the free numbers.
      predict: (numbers, N, P) -> loss.
      starts: for each number, where searches may begin, in every combination; of A, in units of
        the runs' mean number of parameters (the paper's are of 1e9, about what its models have).
    """

    name: str
    formula: str
    names: tuple[str, ...]
    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    starts: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law with its numbers.

    Attributes:
      law: which.
      values: the numbers by name.
      huber: sum of the Huber loss of log residuals, what was minimised.
      r2: 1 - residual / total variance of the losses.
      bic: n ln(mean squared log residual) + (numbers + 1) ln n; the lower of two laws is the
        better told by the data. Differences above 10 are strong.
    """

    law: Law
    values: dict[str, float]
    huber: float
    r2: float
    bic: float

    def predict(self, params: float, streams: float) -> float:
        """The loss that the law expects."""
        numbers = np.array([self.values[name] for name in self.law.names])
        return float(self.law.predict(numbers, np.asarray(params), np.asarray(streams)))


def _parallel(x: np.ndarray, params: np.ndarray, streams: np.ndarray) -> np.ndarray:
    floor, scale, alpha, k = x
    return floor + (scale / (params * (k * np.log(streams) + 1))) ** alpha


def _none(x: np.ndarray, params: np.ndarray, streams: np.ndarray) -> np.ndarray:
    floor, scale, alpha = x
    return floor + (scale / params) ** alpha


def _additive(x: np.ndarray, params: np.ndarray, streams: np.ndarray) -> np.ndarray:
    floor, scale, alpha, gain, beta = x
    return floor + (scale / params) ** alpha + gain * streams**-beta


_FLOORS = tuple(math.exp(power) for power in (-1, -0.5, 0))
_SCALES = tuple(math.exp(power) for power in (-4, -2, 0, 2, 4))
_ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0)

PARALLEL = Law(
    "parallel",
    "E + (A / (N (k ln P + 1)))^alpha",
    ("E", "A", "alpha", "k"),
    _parallel,
    (_FLOORS, _SCALES, _ALPHAS, (0.2, 0.4, 0.6, 0.8)),
)
NONE = Law("none", "E + (A / N)^alpha", ("E", "A", "alpha"), _none, (_FLOORS, _SCALES, _ALPHAS))
ADDITIVE = Law(
    "additive",
    "E + (A / N)^alpha + c P^-beta",
    ("E", "A", "alpha", "c", "beta"),
    _additive,
    (_FLOORS, _SCALES, (0.1, 0.5, 1.0), (0.05, 0.2), (0.2, 0.5, 1.0)),
)
LAWS = (PARALLEL, ADDITIVE, NONE)


LEAST, MOST, FAR = 1e-8, 1e15, 1e3
SEARCHES = 24
"""Searches begin at so many of the starts, those that fit best as they are."""


def fit_law(runs: Sequence[Run], law: Law = PARALLEL) -> Fit:
    """The numbers of a law that fit a table of runs best.

    Minimises the Huber loss (delta 1e-3) of log residuals from many starts, as the ParScale
    paper does; the search is over the numbers' logs, by trust regions.

    Args:
      runs: at least as many as the law has numbers, of more than one size.
      law: which; see `LAWS`.

    Raises:
      UserError: too few runs, or values that are not positive.
    """
    if len(runs) < len(law.names):
        raise UserError(
            f"{len(runs)} runs cannot determine the {len(law.names)} numbers of the law "
            f"'{law.name}': give more runs"
        )
    table = np.array([[run.params, run.streams, run.loss] for run in runs], np.float64)
    if not np.all(np.isfinite(table)) or np.any(table <= 0):
        raise UserError("parameters, streams and losses of runs must be positive numbers")
    params, streams, losses = table.T

    def residuals(logs: np.ndarray) -> np.ndarray:
        found = np.log(law.predict(np.exp(logs), params, streams)) - np.log(losses)
        return np.nan_to_num(found, nan=FAR, posinf=FAR, neginf=-FAR)

    def at(start: tuple[float, ...]) -> float:
        return float(np.abs(residuals(np.log(np.maximum(start, LEAST)))).sum())

    bounds = math.log(LEAST), math.log(MOST)

    def search(start: tuple[float, ...]) -> tuple[float, np.ndarray]:
        logs = np.log(np.maximum(start, LEAST))
        found = optimize.least_squares(
            residuals, logs, "3-point", bounds=bounds, loss="huber", f_scale=DELTA, x_scale="jac"
        )
        return float(found.cost), found.x

    with np.errstate(all="ignore"):  # a search may look where a law is not finite
        size = float(np.exp(np.mean(np.log(params))))
        units = [size if name == "A" else 1.0 for name in law.names]
        begin = (np.multiply(start, units) for start in itertools.product(*law.starts))
        starts = sorted(map(tuple, begin), key=at)[:SEARCHES]
        huber, logs = min(map(search, starts), key=lambda found: found[0])
    return _describe(law, np.exp(logs), huber, residuals(logs), losses)


def _describe(
    law: Law, numbers: np.ndarray, huber: float, residuals: np.ndarray, losses: np.ndarray
) -> Fit:
    count = len(losses)
    predicted = losses * np.exp(residuals)
    r2 = 1 - np.sum((predicted - losses) ** 2) / np.sum((losses - losses.mean()) ** 2)
    spread = max(float(np.mean(residuals**2)), 1e-300)
    bic = count * math.log(spread) + (len(numbers) + 1) * math.log(count)
    values = {name: float(value) for name, value in zip(law.names, numbers, strict=True)}
    return Fit(law, values, huber, float(r2), bic)
