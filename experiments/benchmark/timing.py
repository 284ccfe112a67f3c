"""What a benchmark finds: figures with their spread, in rows. And how calls are timed."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

Name = TypeVar("Name")


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A measured number.

    Attributes:
      median: of several runs.
      low, high: their quartiles; the median itself for what is counted or was measured once.
      unit: "s", "tokens/s", "B", ...; "" for a plain ratio. What it begins with says which way is
        better, see `experiments.benchmark.against`.
    """

    median: float
    low: float
    high: float
    unit: str = ""

    @classmethod
    def of(cls, values: Sequence[float], unit: str) -> Quantity:
        """Of several measurements."""
        if len(values) == 1:
            return cls.exactly(values[0], unit)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, unit)

    @classmethod
    def exactly(cls, value: float, unit: str = "") -> Quantity:
        """A number without spread."""
        return cls(value, value, value, unit)

    def times(self, factor: float, unit: str) -> Quantity:
        """The same in another unit."""
        return Quantity(self.median * factor, self.low * factor, self.high * factor, unit)

    def rate(self, count: float, unit: str) -> Quantity:
        """`count` of something in that time."""
        return Quantity(count / self.median, count / self.high, count / self.low, unit)

    def __str__(self) -> str:
        spread = "" if self.low == self.high else f" ({self.low:,.4g} to {self.high:,.4g})"
        return f"{self.median:,.4g}{spread} {self.unit}".rstrip()


Rows = dict[str, dict[str, Quantity]]
"""Row -> column -> figure: what each benchmark gives, what is printed and written as JSON. A row
says its sizes, so that equal names mean equal work."""


def medians(
    calls: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 2
) -> dict[str, Quantity]:
    """Seconds of each call, see `samples`."""
    times = samples(calls, repeats, warmup)
    return {name: Quantity.of(values, "s") for name, values in times.items()}


def samples(
    calls: Mapping[Name, Callable[[], Any]],
    repeats: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Seconds of each call by a clock, one a turn; the calls take turns, so all see one machine.

    What a call returns is waited for.
    """
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            start = clock()
            jax.block_until_ready(call())
            if turn >= warmup:
                times[name].append(clock() - start)
    return times


def ratio(figure: Quantity, over: Quantity) -> Quantity:
    """Of two medians."""
    return Quantity.exactly(figure.median / over.median)
