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
flops = functools.partial(scaled, base=1000, units=[f"{p}FLOP/s" for p in ("", *"kMGTPE")])
"""12.3 TFLOP/s"""


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
PARAMETERS = Column("parameters", lambda run: run.parameters, whole, "less")
CARRY = Column("carry", lambda run: run.carry_bytes, size, "less")
TIME = Column("training time", lambda run: run.seconds, duration, "less")
STEPS = Column("steps", lambda run: run.steps, whole)


def memory_columns(runs: Sequence[Run]) -> list[Column]:
    """A column for each kind of memory that any of the runs recorded."""
    return [
        Column(name, functools.partial(Run.peak_bytes, kind=kind), size, "less")
        for kind, name in MEMORY.items()
        if any(run.peak_bytes(kind) is not None for run in runs)
    ]


def time_columns(runs: Sequence[Run]) -> list[Column]:
    """Where the time goes and how much of the devices is used, as far as any run recorded it."""

    percent = "{:.1%}".format
    found = [
        Column("step time", lambda run: run.median("step_seconds"), duration, "less"),
        Column("model FLOP/s", lambda run: run.median("model_flops_per_second"), flops),
        Column("MFU", lambda run: run.median("mfu"), percent, "more"),
        Column("waiting for data", lambda run: run.share("data_wait_seconds"), percent, "less"),
        Column("in saves", lambda run: run.share("save_seconds"), percent, "less"),
    ]
    return [column for column in found if any(column.value(run) is not None for run in runs)]


def columns(runs: Sequence[Run]) -> list[Column]:
    """All columns of the table of results."""
    memory, unit = memory_columns(runs), common_unit(runs)
    carry = [CARRY] if any(CARRY.value(run) is not None for run in runs) else []
    seen = Column(unit, lambda run: run.units, whole)
    middle = [speed_column(runs), PARAMETERS, *carry, TIME]
    return [*score_columns(runs), *middle, *time_columns(runs), *memory, STEPS, seen]


def common_unit(runs: Sequence[Run]) -> str:
    """What speeds count: tokens, images; "units" where runs have different ones."""
    units = {run.unit for run in runs}
    return units.pop() if len(units) == 1 else "units"


def speed_column(runs: Sequence[Run]) -> Column:
    """Units a second."""
    return Column(f"{common_unit(runs)}/s", lambda run: run.speed, whole, "more")


def score_columns(runs: Sequence[Run]) -> list[Column]:
    """A column for each score that any of the runs has: the loss first."""
    names = dict.fromkeys(name for run in runs for name in run.scores)
    return [LOSS, *(_score_column(name) for name in names if name not in ("loss", "perplexity"))]


def _score_column(name: str) -> Column:
    if name == "bits_per_byte":
        return BITS
    better = "more" if name.startswith("accuracy") else "less" if name.startswith("loss") else ""
    shown = name.replace("_", " ")
    return Column(shown, lambda run: run.final(name), "{:.4f}".format, better)


def verdict(runs: Sequence[Run], score: str) -> str:
    """What the figures say, in a sentence or two; empty where nothing was validated."""
    column = LOSS if score == "loss" else BITS
    best = runs[0]
    if column.value(best) is None:
        return ""
    nats = "nats per token" if best.unit == "tokens" else "nats"
    unit = nats if score == "loss" else "bits per byte"
    head = "Lowest" if len(runs) > 1 else "Reached"
    text = f"{head}: {column.text(best)} {unit}, by {best.name}."
    levels = {name: scores[score] for name, scores in best.baselines.items() if score in scores}
    behind = [name for name, level in levels.items() if level > (column.value(best) or 0)]
    ahead = [name for name in levels if name not in behind]
    if behind:
        text += f" It predicts better than {_listed(behind)}"
        text += f", not than {_listed(ahead)}." if ahead else "."
    elif ahead:
        text += f" {_listed(ahead)} still predict better."
    return text


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
