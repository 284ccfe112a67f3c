"""What failures and colliding flows cost a long run: how often to save, and how much is lost.

Sources: C4 (arXiv 2406.04594) for what a failure is made of; J. W. Young, "A first order
approximation to the optimum checkpoint interval" (1974), for the period.
"""

from __future__ import annotations

import dataclasses
import functools
import math

from sharding.bounds import NotNegative, Positive, Size, check_bounds, check_number


@dataclasses.dataclass(frozen=True)
class Failures:
    """How often a run fails and how long it takes to go on, all in seconds.

    Attributes:
      between: mean time between failures of the whole run.
      detect: until it is known that something failed.
      isolate: until it is known what, and it is taken out.
      restart: until the run trains again.
      save: that training stands still for one checkpoint.
    """

    between: Positive
    detect: NotNegative = 0.0
    isolate: NotNegative = 0.0
    restart: NotNegative = 0.0
    save: NotNegative = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)

    def lost(self, period: float) -> float:
        """The part of the time that is lost: (P/2 + D + I + R) / M + c / P.

        Half a period of training is done again after a failure, on average.

        Args:
          period: P, seconds of training between two checkpoints.

        Returns:
          A part of the whole; 1 or more says that the run does not go on at all.

        Raises:
          UserError: a period that is not above 0.
        """
        check_number("period", period, Positive)
        stopped = self.detect + self.isolate + self.restart
        return (period / 2 + stopped) / self.between + self.save / period

    @property
    def best_period(self) -> float:
        """The period with the least loss, sqrt(2 c M) seconds; 0 where saving costs nothing."""
        return math.sqrt(2 * self.save * self.between)


def most_on_a_path(flows: int, paths: int) -> float:
    """Flows on the fullest of equal paths, expected, where each flow takes one by chance.

    Exact, by counting in how many of the K^F ways no path has more than m flows.

    Args:
      flows: F, all alike.
      paths: K.

    Raises:
      UserError: no flow or no path.
    """
    check_number("flows", flows, Size)
    check_number("paths", paths, Size)
    ways = paths**flows
    return sum((ways - _no_more(flows, paths, most)) / ways for most in range(flows))


@functools.lru_cache(maxsize=4096)
def _no_more(flows: int, paths: int, most: int) -> int:
    """Ways to deal flows onto paths so that none has more than `most`."""
    ways = [1] + [0] * flows  # over no path: only no flow
    for _ in range(paths):
        ways = [
            sum(math.comb(n, here) * ways[n - here] for here in range(min(n, most) + 1))
            for n in range(flows + 1)
        ]
    return ways[flows]


def planned_on_a_path(flows: int, paths: int) -> int:
    """Flows on the fullest path where they are dealt out evenly: F / K, rounded up."""
    return -(-flows // paths)


def slowdown(flows: int, paths: int, planned: bool = False) -> float:
    """How many times longer a round of equal flows takes than over paths that share them evenly.

    Args:
      flows: F.
      paths: K.
      planned: whether paths are chosen; else by chance, as by a hash (ECMP).

    Returns:
      The load of the fullest path times K / F, at least 1.
    """
    most = planned_on_a_path(flows, paths) if planned else most_on_a_path(flows, paths)
    return most * paths / flows
