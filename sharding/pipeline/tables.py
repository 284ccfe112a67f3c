"""Schedules of a pipeline as data: what every stage does in every tick, all stages in lockstep.

A stage holds `turns` chunks of the layers: chunk c of stage s is place c * stages + s of the way
that a part of the batch takes. A tick has room for one forward and one backward task of each stage;
what a task sends arrives before the next tick.

Sources: GPipe (arXiv 1811.06965), 1F1B and interleaved 1F1B (arXiv 2104.04473, section 2.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from sharding.errors import UserError

GPIPE, ONE_F_ONE_B, INTERLEAVED = "gpipe", "1f1b", "interleaved"
SCHEDULES = (GPIPE, ONE_F_ONE_B, INTERLEAVED)


class Task(NamedTuple):
    """A part of the batch on one of a stage's chunks of layers.

    Attributes:
      part: of the batch, from 0.
      turn: the chunk, from 0.
    """

    part: int
    turn: int


Row = tuple[Task | None, ...]
"""What each stage does in a tick, or None."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Ticks x stages of tasks.

    Attributes:
      stages: how many there are.
      parts: of a batch.
      turns: chunks of layers of a stage.
      forward: of each tick, each stage's forward task.
      backward: of each tick, each stage's backward task, which follows the forward one.
    """

    stages: int
    parts: int
    turns: int
    forward: tuple[Row, ...]
    backward: tuple[Row, ...]

    @property
    def ticks(self) -> int:
        """How many there are."""
        return len(self.forward)

    @property
    def kinds(self) -> tuple[tuple[bool, bool], ...]:
        """Of each tick: whether any stage has a forward task, and whether any has a backward."""
        rows = zip(self.forward, self.backward, strict=True)
        return tuple((any(f), any(b)) for f, b in rows)

    @property
    def forward_ticks(self) -> int:
        """Ticks with a forward task; in each of them every stage goes forward."""
        return sum(f for f, _ in self.kinds)

    @property
    def backward_ticks(self) -> int:
        """Ticks with a backward task; in each of them every stage goes backward."""
        return sum(b for _, b in self.kinds)

    def time(self, forward: float = 1.0, backward: float = 2.0) -> float:
        """How long the table takes in lockstep.

        A tick in which any stage goes forward costs every stage a forward task, likewise backward.

        Args:
          forward: time of a part on all chunks of a stage.
          backward: likewise, of the way back.
        """
        total = self.forward_ticks * forward + self.backward_ticks * backward
        return total / self.turns

    def idle_share(self, forward: float = 1.0, backward: float = 2.0) -> float:
        """The share of the table's time in which a stage has no task of its own."""
        return 1 - self.parts * (forward + backward) / self.time(forward, backward)

    def inputs_kept(self, stage: int) -> int:
        """The most chunk inputs that a stage keeps at a time, from forward to backward."""
        kept = most = 0
        for f, b in zip(self.forward, self.backward, strict=True):
            kept += f[stage] is not None
            most = max(most, kept)
            kept -= b[stage] is not None
        return most

    @property
    def peaks(self) -> tuple[int, ...]:
        """`inputs_kept` of each stage."""
        return tuple(self.inputs_kept(stage) for stage in range(self.stages))

    def before(self, stage: int, turn: int) -> tuple[int, int] | None:
        """(stage, turn) from which a chunk's input comes; None for the first chunk of all."""
        place = turn * self.stages + stage - 1
        return None if place < 0 else (place % self.stages, place // self.stages)

    def after(self, stage: int, turn: int) -> tuple[int, int] | None:
        """(stage, turn) to which a chunk's output goes; None for the last chunk of all."""
        place = turn * self.stages + stage + 1
        if place == self.stages * self.turns:
            return None
        return place % self.stages, place // self.stages

    def check(self) -> None:
        """Raises a ValueError unless every task is there once, after all that it waits for."""
        forward, backward = ticks_of(self.forward), ticks_of(self.backward)
        count = self.stages * self.parts * self.turns
        cells = sum(task is not None for row in (*self.forward, *self.backward) for task in row)
        if cells != 2 * count or len(forward) != count or len(backward) != count:
            raise ValueError("a task is missing, or there twice")
        for (stage, task), tick in forward.items():
            source = self.before(stage, task.turn)
            if source and forward[source[0], Task(task.part, source[1])] >= tick:
                raise ValueError(f"{task} of stage {stage} goes forward before its input is there")
            if backward[stage, task] < tick:
                raise ValueError(f"{task} of stage {stage} goes backward before it went forward")
        for (stage, task), tick in backward.items():
            source = self.after(stage, task.turn)
            if source and backward[source[0], Task(task.part, source[1])] >= tick:
                raise ValueError(f"{task} of stage {stage} goes backward before its gradient comes")


def ticks_of(rows: Iterable[Row]) -> dict[tuple[int, Task], int]:
    """(stage, task) -> its tick."""
    return {
        (stage, task): tick
        for tick, row in enumerate(rows)
        for stage, task in enumerate(row)
        if task is not None
    }


def make_table(schedule: str, stages: int, parts: int, turns: int = 1) -> Table:
    """The table of a schedule.

    Args:
      schedule: "gpipe", all forward and then all backward; "1f1b", backward as soon as it can be;
        "interleaved", the same with several chunks of layers a stage.
      stages: of the pipeline.
      parts: of a batch.
      turns: chunks of a stage; 1 unless interleaved.

    Raises:
      UserError: an unknown schedule, turns that it does not have, or parts that interleaving
        cannot group by stages.
    """
    check_schedule(schedule, turns)
    if schedule == INTERLEAVED and parts % stages:
        raise UserError(
            f"train.accumulate={parts}: interleaved parts go in groups of {stages}, one a stage: "
            f"give a multiple of {stages}, or parallel.schedule={ONE_F_ONE_B}"
        )
    if schedule == GPIPE:
        return _gpipe(stages, parts)
    return _paired(stages, parts, turns)


def one_way(stages: int, parts: int, turns: int = 1) -> Table:
    """Forward tasks alone, in the order of any schedule: what is sent is used in the next tick.

    Any number of parts will do: those that are missing in a group leave its places empty.

    Args:
      stages: of the pipeline.
      parts: that go through it.
      turns: chunks of a stage.
    """
    groups = -(-parts // stages)
    full = _order(stages, turns, parts if turns == 1 else groups * stages, lambda turn: turn)
    order = [task if task.part < parts else None for task in full]
    while order[-1] is None:
        order.pop()
    placed = ((s, task, i + s) for s in range(stages) for i, task in enumerate(order) if task)
    return _filled(stages, parts, turns, len(order) + stages - 1, placed, iter(()))


def check_schedule(schedule: str, turns: int) -> None:
    """Raises a UserError if there is no such schedule, or it has no turns."""
    if schedule not in SCHEDULES:
        raise UserError(f"parallel.schedule={schedule}: it is one of {', '.join(SCHEDULES)}")
    if schedule != INTERLEAVED and turns != 1:
        raise UserError(
            f"parallel.turns={turns}: only parallel.schedule={INTERLEAVED} has turns, "
            f"{schedule} has none: leave it at 1"
        )


def _gpipe(stages: int, parts: int) -> Table:
    """All forward, then all backward in the same order; the last stage turns within a tick."""
    turned = parts + stages - 2
    forward = ((s, Task(j, 0), j + s) for s in range(stages) for j in range(parts))
    backward = (
        (s, Task(j, 0), turned + stages - 1 - s + j) for s in range(stages) for j in range(parts)
    )
    return _filled(stages, parts, 1, 2 * turned + 1, forward, backward)


def _paired(stages: int, parts: int, turns: int) -> Table:
    """From when the last chunk has its first part, every tick is a forward and a backward task."""
    first_back = stages * turns - 1
    count = parts * turns
    ticks = first_back + stages - 1 + count
    ahead = _order(stages, turns, parts, lambda turn: turn)
    back = _order(stages, turns, parts, lambda turn: turns - 1 - turn)
    forward = ((s, ahead[i], i + s) for s in range(stages) for i in range(count))
    backward = (
        (s, back[i], first_back + stages - 1 - s + i) for s in range(stages) for i in range(count)
    )
    return _filled(stages, parts, turns, ticks, forward, backward)


def _order(stages: int, turns: int, parts: int, turn: Callable[[int], int]) -> list[Task]:
    """Groups of as many parts as stages; each goes through all turns before the next group."""
    if turns == 1:
        return [Task(j, 0) for j in range(parts)]
    groups = parts // stages
    return [
        Task(group * stages + own, turn(chunk))
        for group in range(groups)
        for chunk in range(turns)
        for own in range(stages)
    ]


Placed = Iterator[tuple[int, Task, int]]
"""(stage, task, tick)."""


def _filled(
    stages: int, parts: int, turns: int, ticks: int, forward: Placed, backward: Placed
) -> Table:
    def rows(placed: Placed) -> tuple[Row, ...]:
        cells: list[list[Task | None]] = [[None] * stages for _ in range(ticks)]
        for stage, task, tick in placed:
            cells[tick][stage] = task
        return tuple(map(tuple, cells))

    return Table(stages, parts, turns, rows(forward), rows(backward))
