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
    """Seconds of each call: {"median", "min", "max"}; the calls take turns, so all see one machine.

    What a call returns is waited for.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: _spread(values) for name, values in times.items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
