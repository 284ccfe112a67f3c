"""The columns of the table, and how their numbers are written."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from experiments.report.runs import Run
from gam_jax.training.metrics import MEMORY

UNKNOWN = "–"  # noqa: RUF001


@dataclasses.dataclass(frozen=True)
class Column:
    """One figure of every run.

    Attributes:
      name: the heading.
      value: of a run; None where it is not known.
      shown: a value as text.
      better: "less", "more", or "" where neither is better.
    """

    name: str
    value: Callable[[Run], float | None]
    shown: Callable[[float], str]
    better: str = ""

    def text(self, run: Run) -> str:
        """The cell of a run."""
        value = self.value(run)
        return UNKNOWN if value is None else self.shown(value)

    def best(self, runs: Sequence[Run]) -> float | None:
        """The best value of several that are not all the same."""
        values = [value for run in runs if (value := self.value(run)) is not None]
        if not self.better or len(set(values)) < 2:
            return None
        return min(values) if self.better == "less" else max(values)


def whole(value: float) -> str:
    """12,345"""
    return f"{value:,.0f}"


def scaled(value: float, base: int, units: Sequence[str]) -> str:
    """A value in the largest unit that leaves at least one: 1.07 M."""
    for unit in units[:-1]:
        if abs(value) < base:
            return f"{value:.3g} {unit}".strip()
        value /= base
    return f"{value:,.3g} {units[-1]}"


count = functools.partial(scaled, base=1000, units=("", "k", "M", "G", "T"))
"""12.3 k"""
size = functools.partial(scaled, base=1024, units=("B", "KiB", "MiB", "GiB", "TiB"))
"""12.1 KiB"""


def duration(seconds: float) -> str:
    """1 h 02 min, 5 min 10 s, 12.3 s"""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


LOSS = Column("validation loss", lambda run: run.final("loss"), "{:.4f}".format, "less")
BITS = Column("bits per byte", lambda run: run.final("bits_per_byte"), "{:.4f}".format, "less")
SPEED = Column("tokens/s", lambda run: run.speed, whole, "more")
PARAMETERS = Column("parameters", lambda run: run.parameters, whole, "less")
CARRY = Column("carry", lambda run: run.carry_bytes, size, "less")
TIME = Column("training time", lambda run: run.seconds, duration, "less")
STEPS = Column("steps", lambda run: run.steps, whole)
TOKENS = Column("tokens", lambda run: run.tokens, whole)


def memory_columns(runs: Sequence[Run]) -> list[Column]:
    """A column for each kind of memory that any of the runs recorded."""
    return [
        Column(name, functools.partial(Run.peak_bytes, kind=kind), size, "less")
        for kind, name in MEMORY.items()
        if any(run.peak_bytes(kind) is not None for run in runs)
    ]


def columns(runs: Sequence[Run]) -> list[Column]:
    """All columns of the table of results."""
    memory = memory_columns(runs)
    return [LOSS, BITS, SPEED, PARAMETERS, CARRY, TIME, *memory, STEPS, TOKENS]


def verdict(runs: Sequence[Run], score: str) -> str:
    """What the figures say, in a sentence or two; empty where nothing was validated."""
    column = LOSS if score == "loss" else BITS
    best = runs[0]
    if column.value(best) is None:
        return ""
    unit = "nats per token" if score == "loss" else "bits per byte"
    head = "Lowest" if len(runs) > 1 else "Reached"
    text = f"{head}: {column.text(best)} {unit}, by {best.name}."
    behind = [name for name, b in best.baselines.items() if b[score] > (column.value(best) or 0)]
    ahead = [name for name in best.baselines if name not in behind]
    if behind:
        text += f" It predicts better than {_listed(behind)}"
        text += f", not than {_listed(ahead)}." if ahead else "."
    elif ahead:
        text += f" {_listed(ahead)} still predict better."
    return text


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
