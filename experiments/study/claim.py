"""Claims and their verdicts: what must be seen for a sentence of a paper to hold here."""

from __future__ import annotations

import dataclasses
import decimal
import itertools
import math
import statistics
from collections.abc import Container, Mapping, Sequence

HOLDS, REVERSED, UNCLEAR = "HOLDS", "REVERSED", "UNCLEAR"
ONE_SEED, NOT_RUN = "ONE SEED", "NOT RUN"
ERRORS = 2.0
"""Standard errors of a difference below which it is called noise."""

KINDS = (
    "lower",
    "higher",
    "faster",
    "near",
    "at_most",
    "at_least",
    "times_at_most",
    "times_at_least",
    "ordered",
    "printed",
)
PAIRS = ("lower", "higher", "faster", "times_at_most", "times_at_least")
"""Kinds that are about two arms."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Of values of seeds that were not kept one by one.

    Attributes:
      mean: of them.
      count: how many there were.
      deviation: standard deviation of the sample; None where that was not kept either.
    """

    mean: float
    count: int
    deviation: float | None = None


@dataclasses.dataclass(frozen=True)
class Values:
    """What was found of a measure of an arm.

    Attributes:
      values: one a seed, one a turn of what is timed, or one alone of what is exact.
      kind: "seeds", "turns" or "exact".
      seeds: of the values, where they are of seeds.
      summary: in place of values of seeds.
    """

    values: tuple[float, ...]
    kind: str = "seeds"
    seeds: tuple[int, ...] = ()
    summary: Summary | None = None

    @property
    def mean(self) -> float:
        """Mean over seeds; the median of turns."""
        if self.summary is not None:
            return self.summary.mean
        if self.kind == "turns":
            return statistics.median(self.values)
        return statistics.fmean(self.values)

    @property
    def count(self) -> int:
        """How many values there were."""
        return len(self.values) if self.summary is None else self.summary.count

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the sample; None for one value, or where it was not kept."""
        if self.summary is not None:
            return self.summary.deviation
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def noise(self) -> float | None:
        """Standard error of the mean of seeds; 0 of what is exact; None where it is not known."""
        if self.kind == "exact":
            return 0.0
        return None if self.deviation is None else self.deviation / math.sqrt(self.count)

    @property
    def between(self) -> tuple[float, float] | None:
        """Where the mean may lie: two standard errors around it, or the quartiles of turns."""
        if self.kind == "turns":
            return self.quartiles
        if self.noise is None:
            return None
        return self.mean - ERRORS * self.noise, self.mean + ERRORS * self.noise

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper one."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
      word: HOLDS, REVERSED, UNCLEAR, ONE SEED or NOT RUN.
      detail: the figures.
    """

    word: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence that figures can confirm or contradict.

    Attributes:
      text: the sentence.
      kind: "lower" and "higher": the first arm's mean against the second's, beyond two standard
        errors of the differences, seed by seed where both have the same seeds;
        "faster": quartiles of two arms that were timed in turn do not meet;
        "near": every arm's mean is within `tolerance` of `value`;
        "at_most", "at_least": every arm's mean against `value`;
        "times_at_most", "times_at_least": the first arm's mean against `value` times the second's;
        "ordered": every arm is lower than the next, as by "lower";
        "printed": every arm's mean is its figure of `figures`, rounded to the digits of that
        figure; or within `tolerance` of it, as a part of it, where that is given.
      arms: by name.
      measure: by name.
      value, tolerance: see `kind`.
      source: who says so: a table or a section of the paper, or "ours".
      figures: one an arm, as the paper prints them: "0.273", "1e26".
    """

    text: str
    kind: str
    arms: tuple[str, ...]
    measure: str
    value: float = 0.0
    tolerance: float = 0.0
    source: str = ""
    figures: tuple[str, ...] = ()

    def check(self, arms: Container[str], measures: Container[str], study: str) -> None:
        """Raises a ValueError if the claim names what the study does not have."""
        counts = {"ordered": range(2, 99), **dict.fromkeys(PAIRS, (2,))}
        if self.kind not in KINDS or len(self.arms) not in counts.get(self.kind, range(1, 99)):
            raise ValueError(f"study {study}: claim '{self.text}' has no such kind, or other arms")
        if len(self.figures) != (len(self.arms) if self.kind == "printed" else 0):
            raise ValueError(f"study {study}: claim '{self.text}' has not one figure an arm")
        missing = [name for name in self.arms if name not in arms]
        if missing or self.measure not in measures:
            raise ValueError(f"study {study}: claim '{self.text}' names {missing or self.measure}")

    def judge(self, found: Mapping[str, Values]) -> Verdict:
        """The verdict, from the measure's values by arm."""
        missing = [name for name in self.arms if name not in found]
        if missing:
            return Verdict(NOT_RUN, f"without {', '.join(missing)}")
        values = [found[name] for name in self.arms]
        if self.kind == "ordered":
            return _ordered(values)
        if self.kind in ("lower", "higher"):
            return _differ(*values, sign=1 if self.kind == "lower" else -1)
        if self.kind == "faster":
            return _faster(*values)
        if self.kind == "printed":
            return self._printed(values)
        if self.kind.startswith("times"):
            return self._times(*values)
        worst = _worst([self._bounded(own) for own in values])
        return Verdict(worst.word, f"{worst.detail}, {self._wanted}")

    def _times(self, first: Values, second: Values) -> Verdict:
        most = self.kind == "times_at_most"
        ratio = first.mean / second.mean
        wanted = f"{'at most' if most else 'at least'} {self.value:g}"
        detail = f"{ratio:.4g} times, wanted {wanted}"
        ranges = first.between, second.between
        if ranges[0] is None or ranges[1] is None:
            return _unknown((first, second), detail)
        low, high = ranges[0][0] / ranges[1][1], ranges[0][1] / ranges[1][0]
        if low < self.value < high:
            return Verdict(UNCLEAR, detail)
        holds = ratio <= self.value if most else ratio >= self.value
        return Verdict(HOLDS if holds else REVERSED, detail)

    def _printed(self, values: Sequence[Values]) -> Verdict:
        """Ours against the printed figures; the detail says those that are off."""
        off = []
        for name, own, figure in zip(self.arms, values, self.figures, strict=True):
            room = self.tolerance * abs(float(figure)) or last_digit(figure) / 2
            # A tie, as of 0.5 %, is rounded either way.
            if abs(own.mean - float(figure)) > room * (1 + 1e-9):
                off.append(f"{name} {_number(own.mean)}, printed {figure}")
        held = f"{len(values) - len(off)} of {len(values)} as printed"
        return Verdict(REVERSED if off else HOLDS, "; ".join([held, *off]))

    @property
    def _wanted(self) -> str:
        if self.kind == "near":
            return f"wanted {_number(self.value)} ± {self.tolerance:g}"
        return f"wanted {self.kind.replace('_', ' ')} {_number(self.value)}"

    def _bounded(self, own: Values) -> Verdict:
        """One arm against `value`; the detail says its mean."""
        mean = own.mean
        detail = _number(mean)
        if own.kind == "seeds" and own.noise is None:
            return _unknown((own,), detail)
        edges = (self.value - self.tolerance, self.value + self.tolerance)
        error = ERRORS * (own.noise or 0.0) if own.kind == "seeds" else 0.0
        if own.kind == "seeds" and min(abs(mean - edge) for edge in edges) < error:
            return Verdict(UNCLEAR, detail)
        if self.kind == "near":
            inside = abs(mean - self.value) <= self.tolerance
        else:
            inside = mean <= self.value if self.kind == "at_most" else mean >= self.value
        return Verdict(HOLDS if inside else REVERSED, detail)


def last_digit(figure: str) -> float:
    """One unit of the last digit of a printed number: 0.01 of "1.25", 1e25 of "1.2e26"."""
    return 10.0 ** int(decimal.Decimal(figure).as_tuple().exponent)


def _number(value: float) -> str:
    """Counts whole, all else with six digits."""
    return f"{value:,.0f}" if abs(value) >= 1e6 else f"{value:.6g}"


def _unknown(values: Sequence[Values], detail: str) -> Verdict:
    """Of values whose noise is not known: of one seed, or of several whose spread is lost."""
    if any(own.kind == "seeds" and own.count == 1 for own in values):
        return Verdict(ONE_SEED, detail)
    return Verdict(UNCLEAR, f"{detail}; the spread of the seeds was not kept")


def _differ(first: Values, second: Values, sign: int) -> Verdict:
    """Whether the first is lower than the second (sign 1), or higher (-1)."""
    gain = sign * (second.mean - first.mean)
    exact = [each.kind == "exact" for each in (first, second)]
    if all(exact):
        return Verdict(HOLDS if gain > 0 else REVERSED, f"{gain:+.6g}")
    error = _error(first, second)
    if error is None:
        return _unknown((first, second), f"{gain:+.4g}")
    detail = f"{gain:+.4g}, standard error {error:.2g}"
    if abs(gain) < ERRORS * error:
        return Verdict(UNCLEAR, detail)
    return Verdict(HOLDS if gain > 0 else REVERSED, detail)


def _error(first: Values, second: Values) -> float | None:
    """The standard error of the difference; None where a single seed tells none."""
    counts = {len(each) for each in (first.values, second.values, first.seeds)}
    # A measure that some seeds did not give has fewer values than seeds, which are nobody's.
    if first.values and first.seeds == second.seeds and len(counts) == 1:
        pairs = zip(first.values, second.values, strict=True)
        differences = [a - b for a, b in pairs]
        count = len(differences)
        return statistics.stdev(differences) / math.sqrt(count) if count > 1 else None
    errors = [each.noise for each in (first, second)]
    known = [error for error in errors if error is not None]
    return math.hypot(*known) if len(known) == len(errors) else None


def _faster(quick: Values, slow: Values) -> Verdict:
    """Whether times taken in turn differ beyond their quartiles."""
    ratio = slow.mean / quick.mean
    (q_low, q_high), (s_low, s_high) = quick.quartiles, slow.quartiles
    detail = f"{ratio:.2f} times as fast"
    if not (q_high < s_low or s_high < q_low):
        return Verdict(UNCLEAR, detail)
    return Verdict(HOLDS if ratio > 1 else REVERSED, detail)


def _ordered(values: Sequence[Values]) -> Verdict:
    """Every neighbour pair as by "lower"; the worst of their verdicts."""
    return _worst([_differ(a, b, 1) for a, b in itertools.pairwise(values)])


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst word of several verdicts, and each detail once."""
    words = [verdict.word for verdict in verdicts]
    worst = next((word for word in (REVERSED, ONE_SEED, UNCLEAR) if word in words), HOLDS)
    return Verdict(worst, "; ".join(dict.fromkeys(verdict.detail for verdict in verdicts)))
