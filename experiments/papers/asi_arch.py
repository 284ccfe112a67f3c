"""The search of ASI-Arch: its fitness, its pool, and its count of what was found.

Source: arXiv 2507.18074. Language models propose, write and judge architectures there; they are no
part of this. What is seen here is the arithmetic of the fitness, and the rule by which parents and
references are drawn, on landscapes whose best point is known.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, closed
from experiments.study.declare import CPU, SHORT, Numbers
from gam_jax.search import Point, Space, search, strategy_of

LIMIT = 0.1
"""Of a gain: beyond it the fitness sees no more, and a loss so much lower is taken for a leak."""
LOSSES = {"deltanet": 4.5749, "gated": 4.5678, "fused": 4.4233}
"""At 20 M parameters, table 2: DeltaNet, Gated DeltaNet and FusionGatedFIRNet."""
JUDGED = {"deltanet": 5.0, "gated": 10.0}
"""What the judge is told that these two are worth."""
CHOICES, VALUES, COUPLED = 8, {SHORT: 3, CPU: 6}, 4
"""Of a landscape: up to 1,679,616 points; a part of the loss depends on some choices in a row."""
KEPT = 0.05
"""The share of all points that is kept where it is found, about the paper's 106 of 1,773."""
RULE = "evolve:pool=50,parents=10,references=4,first=200,refresh=50"
SEARCHES = {
    "random": "random",
    "rule": RULE,
    "alone": RULE.replace("references=4", "mix=0.0"),
    "second": RULE.replace("references=4", "references=0"),
}
TRIALS, SEEDS = {SHORT: 300, CPU: 1773}, {SHORT: 2, CPU: 10}
"""Candidates of a search, as many as the paper's runs of 20 M parameters; and landscapes."""


def gain(value: float, base: float, higher: bool = False) -> float:
    """By what share a loss is below the base's, or a score above it, within `LIMIT`."""
    share = (value - base) / base
    return max(-LIMIT, min(LIMIT, share if higher else -share))


def fitness(loss_gain: float, score_gain: float, judged: float) -> float:
    """(sigmoid(loss gain) + sigmoid(score gain) + judged / 10) / 3, judged from 0 to 10."""
    return (_sigmoid(loss_gain) + _sigmoid(score_gain) + judged / 10) / 3


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def arithmetic() -> Numbers:
    """What the terms of the fitness can do."""
    base = LOSSES["deltanet"]
    most, least = (fitness(x, x, 0.0) for x in (LIMIT, -LIMIT))
    percent = fitness(100 * LIMIT, 100 * LIMIT, 0.0) - fitness(-100 * LIMIT, -100 * LIMIT, 0.0)
    gated = fitness(gain(LOSSES["gated"], base), 0.0, JUDGED["gated"])
    return {
        "point": fitness(0, 0, 1.0) - fitness(0, 0, 0.0),
        "gains": most - least,
        "percent": percent,
        "deltanet": fitness(0.0, 0.0, JUDGED["deltanet"]),
        "gated": gated,
        "fused": 100 * gain(LOSSES["fused"], base),
    }


class Landscape:
    """Losses of all points: parts that depend on some choices each, drawn from a seed.

    Args:
      values: of each choice.
      seed: of the parts.
    """

    def __init__(self, values: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.space = Space.of({f"choice_{i}": list(range(values)) for i in range(CHOICES)})
        losses = np.zeros((values,) * CHOICES)
        for choice in range(CHOICES):
            part = random.normal(size=(values,) * COUPLED)
            places = [(choice + i) % CHOICES for i in range(COUPLED)]
            order = np.argsort(places)
            shape = [values if place in places else 1 for place in range(CHOICES)]
            losses += part.transpose(order).reshape(shape)
        losses -= losses.min()
        self.losses = 1 + LIMIT * losses / np.median(losses)
        """1 at the best point; the median, the base's, 10 % above it."""
        self.base = float(np.median(self.losses))
        self.kept = float(np.quantile(self.losses, KEPT))

    def score(self, point: Point) -> float:
        """Less the fitness; the judge, and the benchmark, say of all the same."""
        return -fitness(gain(float(self.losses[point]), self.base), 0.0, JUDGED["deltanet"])

    def measure(self, points: Sequence[Point]) -> list[float]:
        """What a search is told."""
        return [self.score(point) for point in points]


landscape = functools.lru_cache(maxsize=2)(Landscape)


def searched(land: Landscape, name: str, trials: int, seed: int) -> tuple[float, float, float]:
    """Percent above the best point; how straight a line the count of what is kept is; its share."""
    found = search(land.space, strategy_of(SEARCHES[name]), land.measure, trials, seed)
    losses = np.array([land.losses[each.point] for each in found.results])
    kept = np.cumsum(losses <= land.kept)
    count = np.arange(1, len(kept) + 1)
    straight = float(np.corrcoef(count, kept)[0, 1] ** 2) if kept[-1] else 0.0
    return 100 * float(losses.min() - 1), straight, float(kept[-1] / len(kept))


def numbers(name: str, setting: Setting, seed: int) -> Numbers:
    """Means over landscapes."""
    count, scale = SEEDS[setting.scale], setting.scale
    found = [
        searched(landscape(VALUES[scale], own), name, TRIALS[scale], own)
        for own in range(seed * count, (seed + 1) * count)
    ]
    means = np.mean(found, axis=0)
    return dict(zip(("above", "straight", "rate"), map(float, means), strict=True))


CLAIMS = (
    Claim(
        "One point of ten from the judge is worth more than both gains can be together",
        "at_least",
        ("fitness",),
        "point",
        arithmetic()["gains"],
        source="derived: gains as shares within 0.1",
    ),
    Claim(
        "If gains are in percent, which the text leaves open, they are worth twenty points",
        "near",
        ("fitness",),
        "percent",
        20 * arithmetic()["point"],
        0.001,
        source="derived",
    ),
    Claim(
        "The base's own fitness is a half",
        "near",
        ("fitness",),
        "deltanet",
        0.5,
        1e-12,
        source="derived",
    ),
    Claim(
        "FusionGatedFIRNet is within the limit of 10 % below DeltaNet's loss",
        "at_most",
        ("fitness",),
        "fused",
        100 * LIMIT,
        source="table 2",
    ),
    Claim(
        "What is kept grows in a straight line with what is tried",
        "at_least",
        ("rule",),
        "straight",
        0.95,
        source="abstract: a scaling law of discovery",
    ),
    Claim(
        "so it does where candidates are drawn alike, which no search is needed for",
        "at_least",
        ("random",),
        "straight",
        0.95,
        source="derived",
    ),
    Claim(
        "The rule keeps more than candidates that are drawn alike",
        "higher",
        ("rule", "random"),
        "rate",
        source="ours",
    ),
    Claim(
        "and comes nearer to the best point",
        "lower",
        ("rule", "random"),
        "above",
        source="ours",
    ),
    Claim(
        "References of ranks 11 to 50 come nearer than parents alone",
        "lower",
        ("rule", "alone"),
        "above",
        source="ours, of its rule",
    ),
    Claim(
        "and nearer than a second parent of the whole pool",
        "lower",
        ("rule", "second"),
        "above",
        source="ours, of its rule",
    ),
)

STUDY = Study(
    name="asi-arch",
    title="Parents, references and the fitness of an architecture search",
    source="arXiv 2507.18074",
    page="search.md",
    arms={
        "fitness": closed("the fitness, term by term", arithmetic),
        "rule": Arm(
            "parents of ranks 1-10, references of 11-50", numbers=functools.partial(numbers, "rule")
        ),
        "alone": Arm("parents alone", numbers=functools.partial(numbers, "alone")),
        "second": Arm("a second parent of 1-50", numbers=functools.partial(numbers, "second")),
        "random": Arm("drawn alike", numbers=functools.partial(numbers, "random")),
    },
    measures={
        "above": Measure("best above the best point", "lower", "%", ".2f"),
        "rate": Measure("share that is kept", "higher", form=".3f"),
        "straight": Measure("R^2 of kept over tried", form=".4f"),
        "point": Measure("a point of the judge", form=".6f"),
        "gains": Measure("both gains, least to most", form=".6f"),
        "percent": Measure("the same in percent", form=".4f"),
        "deltanet": Measure("fitness of DeltaNet", form=".4f"),
        "gated": Measure("of Gated DeltaNet", form=".4f"),
        "fused": Measure("gain of FusionGatedFIRNet", unit="%", form=".2f"),
    },
    claims=CLAIMS,
    notes=(
        "landscapes of 1,679,616 points in which a part of the loss depends on four choices in a "
        "row; the base is the median point, 10 % above the best; kept are the best 5 % of points",
    ),
    absent=(
        Absent(
            "106 architectures better than DeltaNet of 1,773", "language models that write them"
        ),
        Absent("The judge's scores, and weights of its parts", "a language model"),
    ),
)
