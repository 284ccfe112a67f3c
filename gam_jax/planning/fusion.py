"""What becomes of an intermediate array: it is materialised, streamed in tiles, or recomputed.

Source: InTAR (arXiv 2502.08807), which decides so for circuits: one task after the other while
what lies between fits in fast memory, a pipeline of tasks where it does not. Its schedule is a
heuristic; here the cost is minimised exactly, over all ways to cut a chain of tasks into groups.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sharding.bounds import NotNegative, Positive, Size, check_bounds

KEEP, SPILL, STREAM = "keep", "spill", "stream"
"""An output stays in fast memory; goes to slow memory and back; is handed on tile by tile."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One operation of a chain.

    Attributes:
      products: multiply-adds.
      output: bytes that the next task reads.
      weights: bytes that are read from slow memory.
    """

    products: NotNegative
    output: NotNegative
    weights: NotNegative = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What computes the tasks.

    Attributes:
      rate: multiply-adds a second.
      bandwidth: bytes a second of slow memory.
      fast: bytes of fast memory.
      tiles: that a streamed array is cut into; the more, the sooner a pipeline is full.
    """

    rate: Positive
    bandwidth: Positive
    fast: NotNegative
    tiles: Size = 1024

    def __post_init__(self) -> None:
        if self.fast != float("inf"):
            check_bounds(self)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a chain is run.

    Attributes:
      groups: (first, after the last) of each; tasks of one group are a pipeline.
      outputs: what becomes of each task's output, but the last one's: KEEP, SPILL or STREAM.
      seconds: in all.
      spilled: bytes that go to slow memory and come back.
    """

    groups: tuple[tuple[int, int], ...]
    outputs: tuple[str, ...]
    seconds: float
    spilled: float


def best_plan(tasks: Sequence[Task], chip: Chip) -> Plan:
    """The plan with the least seconds, by a dynamic program over where the chain is cut.

    Of equal plans, the one with the smaller groups.

    Args:
      tasks: in their order.
      chip: what runs them.
    """
    count = len(tasks)
    least, cut = [0.0] + [float("inf")] * count, [0] * (count + 1)
    for end in range(1, count + 1):
        for begin in reversed(range(end)):
            seconds = least[begin] + _seconds(tasks, begin, end, chip)
            if seconds < least[end]:
                least[end], cut[end] = seconds, begin
    groups, end = [], count
    while end:
        groups.append((cut[end], end))
        end = cut[end]
    return planned(tasks, chip, groups[::-1])


def planned(tasks: Sequence[Task], chip: Chip, groups: Sequence[tuple[int, int]]) -> Plan:
    """The plan with these groups: what becomes of each output, and what it all takes."""
    outputs, spilled = [], 0.0
    for begin, end in groups:
        outputs += [STREAM] * (end - begin - 1)
        spills = _spilled(tasks, end, chip)
        outputs.append(SPILL if spills else KEEP)
        spilled += spills
    seconds = sum(_seconds(tasks, *group, chip) for group in groups)
    return Plan(tuple(groups), tuple(outputs[:-1]), seconds, spilled)


def _seconds(tasks: Sequence[Task], begin: int, end: int, chip: Chip) -> float:
    """Of one group: arithmetic, weights, filling its pipeline, and spilling what it gives.

    A pipeline's lanes are shared out in proportion to the products, so that its arithmetic takes
    as long as one after the other; each stage but the first waits for a tile.
    """
    own = tasks[begin:end]
    arithmetic = sum(task.products for task in own) / chip.rate
    filling = arithmetic * (len(own) - 1) / chip.tiles
    moved = sum(task.weights for task in own) + _spilled(tasks, end, chip)
    return arithmetic + filling + moved / chip.bandwidth


def _spilled(tasks: Sequence[Task], end: int, chip: Chip) -> float:
    """Bytes written and read again for a group's output; the chain's own output is no spill."""
    output = tasks[end - 1].output
    return 2 * output if end < len(tasks) and output > chip.fast else 0.0


def recompute(task: Task, chip: Chip) -> bool:
    """Whether a backward pass does better to compute a task again than to read its output.

    Its output would be written and read; computing it again reads its weights, from inputs that
    are at hand.
    """
    again = task.products / chip.rate + task.weights / chip.bandwidth
    return again < 2 * task.output / chip.bandwidth
