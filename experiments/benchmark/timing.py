"""Medians of timed calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


def medians(
    calls: Mapping[str, Callable[[], Any]], repeats: int, warmup: int = 2
) -> dict[str, dict[str, float]]:
    """Seconds of each call, see `spread`; the calls take turns, so all see one machine.

    What a call returns is waited for.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: spread(values) for name, values in times.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """median, the quartiles low and high, min and max."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else None
    low, median, high = quartiles or [values[0]] * 3
    return {"median": median, "low": low, "high": high, "min": min(values), "max": max(values)}
