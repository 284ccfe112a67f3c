"""Which process makes the others wait.

In a step all wait for all, so every process takes equally long for it; what differs is what it
did in that time. Each measures its own work (waiting for data, Python, starting the step) and the
rest, which it waited for its devices and for the others. The least of these waits is the time of
the step itself, since the process that comes last waits for nobody (arXiv 2406.04594 finds the
slow one by the same sign). So

  step time of rank r = own work of r + least wait of all ranks

is what its steps would take if all were like it. A straggler is a rank for which that is `ratio`
times the median of the ranks (the lower one of two), in `NEEDED` of the last `WINDOWS` windows.
Devices that are slow inside a step are not told apart this way: they lengthen everybody's wait.
"""

from __future__ import annotations

import collections
import dataclasses
import statistics
import time
from collections.abc import Sequence

WINDOWS, NEEDED = 5, 3
LEAST_SECONDS = 0.005
"""Less than that above the median is never slow, however short the steps."""


@dataclasses.dataclass(frozen=True)
class Straggler:
    """A rank that is slow.

    Attributes:
      rank: of the process.
      seconds: its step time.
      median: that of all.
    """

    rank: int
    seconds: float
    median: float


class Stragglers:
    """Remembers who was slow in the last windows.

    Args:
      ratio: step time by median of one that is slow; 0 accuses nobody.
    """

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._slow: collections.deque[int | None] = collections.deque(maxlen=WINDOWS)

    def note(self, own: Sequence[float], waits: Sequence[float]) -> Straggler | None:
        """One window's mean seconds a step of each rank; the straggler, if one is shown by now.

        After one was reported the count begins anew, so that it is said again only after
        `NEEDED` more windows.
        """
        times = [mine + min(waits) for mine in own]
        median = statistics.median_low(times)
        rank = max(range(len(times)), key=times.__getitem__)
        slow = self._ratio and times[rank] >= max(self._ratio * median, median + LEAST_SECONDS)
        self._slow.append(rank if slow else None)
        if not slow or self._slow.count(rank) < NEEDED:
            return None
        self._slow.clear()
        return Straggler(rank, times[rank], median)


class Pace:
    """Seconds that this process worked and waited, in the steps since it was last asked."""

    def __init__(self) -> None:
        self._totals = {"own": 0.0, "waits": 0.0}
        self._steps = 0
        self._what: str | None = None
        self._since = 0.0

    def own(self) -> None:
        """A step begins with own work."""
        self._to("own")

    def wait(self) -> None:
        """The step has been started, or is now: from here on this process waits."""
        self._to("waits")

    def pause(self) -> None:
        """What comes now is no part of a step."""
        self._steps += self._what == "waits"
        self._to(None)

    def lap(self) -> tuple[float, float]:
        """Mean seconds of own work and of waiting in a step."""
        means = [total / max(self._steps, 1) for total in self._totals.values()]
        self._totals, self._steps = dict.fromkeys(self._totals, 0.0), 0
        return means[0], means[1]

    def _to(self, what: str | None) -> None:
        now = time.perf_counter()
        if self._what is not None:
            self._totals[self._what] += now - self._since
        self._what, self._since = what, now
