"""Which relations of a paper hold here, and how sure that is."""

from __future__ import annotations

import dataclasses
import math

from experiments.benchmark.timing import Quantity
from experiments.papers.gam.trials import Found

HOLDS, REVERSED = "holds", "does not hold"
UNCLEAR, ONE_SEED = "within the noise", "not known from one seed"


@dataclasses.dataclass(frozen=True)
class Relation:
    """One claim and what was found of it.

    Attributes:
      claim: in words.
      verdict: HOLDS, REVERSED, UNCLEAR or ONE_SEED.
      detail: the figures.
    """

    claim: str
    verdict: str
    detail: str

    def __str__(self) -> str:
        return f"{self.claim}: {self.verdict} ({self.detail})"


def lower_loss(claim: str, better: Found, worse: Found) -> Relation:
    """Whether the mean loss of the one is lower than that of the other.

    A difference of less than two standard errors is called noise. Of single seeds no error is
    known, so nothing is claimed of them.
    """
    gain = worse.loss - better.loss
    errors = [one.spread / math.sqrt(len(one.losses)) for one in (better, worse)]
    error = math.hypot(*errors)
    if math.isnan(error):
        verdict, detail = ONE_SEED, f"{gain:+.4f} nats"
    else:
        verdict = UNCLEAR if abs(gain) < 2 * error else HOLDS if gain > 0 else REVERSED
        detail = f"{gain:+.4f} nats, standard error {error:.4f}"
    return Relation(claim, verdict, detail)


def faster(claim: str, quick: Quantity, slow: Quantity) -> Relation:
    """Whether times taken in turn differ beyond their quartiles."""
    ratio = slow.median / quick.median
    apart = quick.high < slow.low or slow.high < quick.low
    verdict = UNCLEAR if not apart else HOLDS if ratio > 1 else REVERSED
    return Relation(claim, verdict, f"{ratio:.2f} times as fast")
