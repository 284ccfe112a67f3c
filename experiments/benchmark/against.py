"""What got slower or larger from one file of figures to another, beyond noise."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from rich.table import Table as TextTable

from experiments.benchmark.collect import Measured
from experiments.benchmark.timing import Quantity
from experiments.tables import print_table

LESS = ("s", "us", "B")
MORE = ("tokens/s", "calls/s", "GFLOP/s")
TIMES = ("s", "us", *MORE)
SAME_MACHINE = ("processor", "cores", "backend")


@dataclasses.dataclass(frozen=True)
class Change:
    """One figure in both files.

    Attributes:
      name: benchmark, row and column.
      old, new: the figures.
      cost: how many times as much time or memory the new one takes.
      verdict: "slower", "larger", "faster", "smaller" or "same".
    """

    name: str
    old: Quantity
    new: Quantity
    cost: float
    verdict: str


@dataclasses.dataclass(frozen=True)
class Changes:
    """All that can be compared.

    Attributes:
      changes: a figure each.
      machine: the median of all times' costs: near 1 unless the machine itself differs.
      notes: what makes the comparison doubtful.
      missing: figures of the old file that the new one lacks.
    """

    changes: Sequence[Change]
    machine: float
    notes: Sequence[str]
    missing: Sequence[str]

    @property
    def worse(self) -> list[Change]:
        """Those that are slower or larger beyond noise."""
        return [change for change in self.changes if change.verdict in ("slower", "larger")]


def compare(old: Measured, new: Measured, tolerance: float = 0.1) -> Changes:
    """Compares every figure whose unit says which way is better.

    A time is slower if its median is worse by more than `tolerance` and the quartiles of the two
    do not meet. Bytes have no noise: larger is more than a hundredth.
    """
    before, after = _flat(old), _flat(new)
    both = [name for name in before if name in after and _better(before[name].unit)]
    changes = [_change(name, before[name], after[name], tolerance) for name in both]
    times = [each.cost for each in changes if each.old.unit.split("/")[0] != "B"]
    notes = [
        f"{field}: {old.machine.get(field)} before, {new.machine.get(field)} now"
        for field in (*SAME_MACHINE, "jax", "python")
        if old.machine.get(field) != new.machine.get(field)
    ]
    for one in (old, new):
        if max(one.load[0], one.load[1] - 1) > 0.5 * (one.machine.get("cores") or 1):
            notes.append(f"{one.path} was measured on a busy machine (load {max(one.load)})")
    machine = statistics.median(times) if times else 1.0
    missing = [name for name in before if name not in after]
    return Changes(changes, machine, notes, missing)


def _flat(measured: Measured) -> dict[str, Quantity]:
    return {
        f"{benchmark}: {row}: {column}": figure
        for benchmark, rows in measured.benchmarks.items()
        for row, figures in rows.items()
        for column, figure in figures.items()
    }


def _better(unit: str) -> int:
    """1 if less is better, -1 if more, 0 if it is not judged."""
    if unit in MORE:
        return -1
    return int(unit.split("/")[0] in LESS)


def _change(name: str, old: Quantity, new: Quantity, tolerance: float) -> Change:
    if _better(old.unit) > 0:
        cost = new.median / old.median if old.median else 1.0 if not new.median else float("inf")
        worse, better = new.low > old.high, new.high < old.low
    else:
        cost = old.median / new.median
        worse, better = new.high < old.low, new.low > old.high
    if old.unit.split("/")[0] == "B":
        verdict = "larger" if cost > 1.01 else "smaller" if cost < 0.99 else "same"
    elif worse and cost > 1 + tolerance:
        verdict = "slower"
    else:
        verdict = "faster" if better and cost < 1 / (1 + tolerance) else "same"
    return Change(name, old, new, cost, verdict)


def print_changes(changes: Changes) -> None:
    """What differs, worst first, and what was not compared."""
    table = TextTable("figure", "before", "now", "times", "")
    differ = [change for change in changes.changes if change.verdict != "same"]
    for each in sorted(differ, key=lambda each: -each.cost):
        cells = (str(each.old), str(each.new), f"{each.cost:.2f}", each.verdict)
        table.add_row(each.name, *cells)
    if differ:
        print_table(table)
    for note in changes.notes:
        print(f"note: {note}")
    for name in changes.missing:
        print(f"missing now: {name}")
    counts = f"{len(changes.worse)} worse of {len(changes.changes)} compared"
    print(f"{counts}; all times together: {changes.machine:.2f} times as long")
