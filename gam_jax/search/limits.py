"""Limits on what a candidate costs, and one number for how far it exceeds them.

Source: NASAIC (arXiv 2002.04116): a design is trained only where this penalty is 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a figure may be at most.

    Attributes:
      name: of the figure.
      most: what is within the limit; a finite number.
      bound: where the penalty of this figure is 1; a finite number above `most`.

    Raises:
      UserError: one of both is not finite, or the bound is not above the limit.
    """

    name: str
    most: float
    bound: float

    def __post_init__(self) -> None:
        for name in ("most", "bound"):
            if not math.isfinite(value := getattr(self, name)):
                raise UserError(f"limit of {self.name}: {name}={value}: give a finite number")
        if self.bound <= self.most:
            raise UserError(f"limit of {self.name}: bound {self.bound} is not above {self.most}")

    def penalty(self, figure: float) -> float:
        """0 up to the limit, 1 at the bound, and a straight line from there on.

        A figure that is not a number (NaN) exceeds every limit: its penalty is infinite.
        """
        if math.isnan(figure):
            return math.inf
        return max(0.0, (figure - self.most) / (self.bound - self.most))


def penalty(figures: Mapping[str, float], limits: Iterable[Limit]) -> float:
    """The sum over limits: 0 where all of them hold, and only there.

    Raises:
      UserError: a figure that a limit is on is missing.
    """
    total = 0.0
    for limit in limits:
        if limit.name not in figures:
            raise UserError(f"limit of {limit.name}: there is no such figure")
        total += limit.penalty(figures[limit.name])
    return total
