"""Which processes of a job hang, judged from their heartbeats.

Two ways of hanging, after the classes of C4 (arXiv 2406.04594):

- silent: a process that has beaten does not any more. It is frozen (stopped, swapped out, its
  host gone), whatever the others do.
- stuck: all threads beat, but no main thread has come by for long. In a step all wait for all, so
  the one whose count is behind is the one that the others wait for. Where none is behind, the
  collective itself hangs and nobody is accused.

A process is never accused for one slow step: the limit is in seconds, and phases that may take
long (starting, compiling, validating, saving) have a longer one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from gam_jax.training.heartbeat import TRAINING, Beat

MISSED_SECONDS = 10.0
"""Half of what JAX waits for another process (`processes.HEARTBEAT_SECONDS`)."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds without a sign of progress.

    Attributes:
      step: of a beat, and of the main thread while it trains; 0 judges nobody.
      other: of the main thread in any other phase.
    """

    step: float
    other: float


@dataclasses.dataclass(frozen=True)
class Hang:
    """What was found.

    Attributes:
      beats: of those who hang; empty if all wait and none is behind.
      what: how, in words.
    """

    beats: tuple[Beat, ...]
    what: str

    def __str__(self) -> str:
        if not self.beats:
            return f"all processes {self.what}, and none is behind: a collective hangs"
        return "; ".join(f"{named(beat)} {self.what}, {where(beat)}" for beat in self.beats)


def named(beat: Beat) -> str:
    """A process by rank, host and number."""
    return f"process {beat.rank} ({beat.host}, pid {beat.pid})"


def where(beat: Beat) -> str:
    """How far it was."""
    return f"{beat.phase} at step {beat.step}"


class Watch:
    """Remembers when each process last moved.

    Args:
      limits: after how long one hangs.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._beats: dict[int, Beat] = {}
        self._alive: dict[int, tuple[int, float]] = {}
        self._count: dict[int, tuple[int, float]] = {}

    def look(self, beats: Mapping[int, Beat], running: Sequence[int], now: float) -> Hang | None:
        """The hang that there is, if any.

        Args:
          beats: the last of each process.
          running: ranks of those that have not ended. One that has never beaten is not judged.
          now: seconds of a steady clock.
        """
        self._beats.update(beats)
        for rank, beat in beats.items():
            for seen, value in ((self._alive, beat.alive), (self._count, beat.count)):
                if rank not in seen or seen[rank][0] != value:
                    seen[rank] = value, now
        watched = [beats[rank] for rank in running if rank in beats]
        if not watched or not self._limits.step:
            return None
        found = self._silent(watched, self._limits.step, now)
        return found or self._stuck(watched, len(running), now)

    def missed(self, running: Sequence[int], now: float) -> Hang | None:
        """Of those that run on when another has ended: who may have been frozen before.

        JAX ends a process that misses another for long; that one is the cause, not the dead.
        """
        watched = [self._beats[rank] for rank in running if rank in self._beats]
        limit = min(self._limits.step / 2, MISSED_SECONDS)
        return self._silent(watched, limit, now) if limit else None

    def _silent(self, watched: Sequence[Beat], limit: float, now: float) -> Hang | None:
        frozen = tuple(b for b in watched if now - self._alive[b.rank][1] > limit)
        return Hang(frozen, f"has given no sign of life for {limit:g} s") if frozen else None

    def _stuck(self, watched: Sequence[Beat], running: int, now: float) -> Hang | None:
        limits = [
            self._limits.step if beat.phase == TRAINING else self._limits.other for beat in watched
        ]
        still = [now - self._count[beat.rank][1] for beat in watched]
        if len(watched) < running or any(s <= m for s, m in zip(still, limits, strict=True)):
            return None
        ahead = max(beat.count for beat in watched)
        behind = tuple(beat for beat in watched if beat.count < ahead)
        words = f"{'is' if behind or len(watched) == 1 else 'are'} stuck for {max(still):.0f} s"
        if len(watched) == 1:
            return Hang(tuple(watched), words)
        return Hang(behind, words)
