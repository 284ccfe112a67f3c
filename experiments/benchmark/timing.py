"""What a benchmark finds: figures with their spread, in rows. And how calls are timed."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Figure:
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
    def of(cls, values: Sequence[float], unit: str) -> Figure:
        """Of several measurements."""
        if len(values) == 1:
            return cls.exactly(values[0], unit)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, unit)

    @classmethod
    def exactly(cls, value: float, unit: str = "") -> Figure:
        """A number without spread."""
        return cls(value, value, value, unit)

    def times(self, factor: float, unit: str) -> Figure:
        """The same in another unit."""
        return Figure(self.median * factor, self.low * factor, self.high * factor, unit)

    def rate(self, count: float, unit: str) -> Figure:
        """`count` of something in that time."""
        return Figure(count / self.median, count / self.high, count / self.low, unit)

    def __str__(self) -> str:
        spread = "" if self.low == self.high else f" ({self.low:,.4g} to {self.high:,.4g})"
        return f"{self.median:,.4g}{spread} {self.unit}".rstrip()


Rows = dict[str, dict[str, Figure]]
"""Row -> column -> figure: what each benchmark gives, what is printed and written as JSON. A row
says its sizes, so that equal names mean equal work."""


def medians(
    calls: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 2
) -> dict[str, Figure]:
    """Seconds of each call; the calls take turns, so all see one machine.

    What a call returns is waited for.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: Figure.of(values, "s") for name, values in times.items()}


def ratio(figure: Figure, over: Figure) -> Figure:
    """Of two medians."""
    return Figure.exactly(figure.median / over.median)
