"""How long free orders of a pipeline take, and what its stages keep: tasks as events in time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sharding.pipeline.orders import BACKWARD, FORWARD, INPUT, WEIGHTS, Orders, Work


@dataclasses.dataclass(frozen=True)
class Times:
    """How long tasks take.

    Attributes:
      forward: of a part on a stage, all its chunks together.
      input: of the gradient of its input.
      weights: of the gradient of its weights.
      message: for which a stage is busy with each message that it sends.
      latency: from there until the message is where it is needed; the stage does not wait for it.
      stages: factor of each stage's times; () where all are alike.
    """

    forward: float = 1.0
    input: float = 1.0
    weights: float = 1.0
    message: float = 0.0
    latency: float = 0.0
    stages: tuple[float, ...] = ()

    def of(self, work: Work, stage: int, turns: int) -> float:
        """Of one task, without what it sends."""
        time = {
            FORWARD: self.forward,
            INPUT: self.input,
            WEIGHTS: self.weights,
            BACKWARD: self.input + self.weights,
        }[work.kind]
        return time / turns * (self.stages[stage] if self.stages else 1.0)


@dataclasses.dataclass(frozen=True)
class Timeline:
    """When each stage does what.

    Attributes:
      orders: that were followed.
      begins, ends: of each task of each stage, in the order of the stage.
    """

    orders: Orders
    begins: tuple[tuple[float, ...], ...]
    ends: tuple[tuple[float, ...], ...]

    @property
    def makespan(self) -> float:
        """From the first task of any stage to the end of the last."""
        return max(row[-1] for row in self.ends)

    @property
    def spans(self) -> tuple[float, ...]:
        """Of each stage, from its own first task to the end of its last."""
        rows = zip(self.begins, self.ends, strict=True)
        return tuple(ends[-1] - begins[0] for begins, ends in rows)

    @property
    def idle(self) -> tuple[float, ...]:
        """Of each stage, the time within its span in which it has nothing to do."""
        rows = zip(self.spans, self.begins, self.ends, strict=True)
        return tuple(
            span - sum(e - b for b, e in zip(begins, ends, strict=True))
            for span, begins, ends in rows
        )

    @property
    def peaks(self) -> tuple[int, ...]:
        """Of each stage, the most chunks' activations that it keeps at a time.

        They are kept from a forward task to the end of the gradient of its weights.
        """
        found = []
        for row in self.orders.rows:
            kept = most = 0
            for work in row:
                kept += work.kind == FORWARD
                most = max(most, kept)
                kept -= work.kind in (BACKWARD, WEIGHTS)
            found.append(most)
        return tuple(found)


def simulate(orders: Orders, times: Times = Times()) -> Timeline:
    """Lets every stage do its tasks in its order, each as soon as what it needs is there.

    A message is sent by whoever computed it: the stage is busy with it before it begins another
    task, and it is there when that is done and the latency is over. Chunks of one stage that
    follow one another send none.

    Args:
      orders: of the stages.
      times: of tasks and messages.

    Raises:
      ValueError: stages that wait for each other for ever, or that skip a task.
    """
    last = orders.stages * orders.turns - 1
    done: dict[tuple[str, int, int], float] = {}
    begins: list[list[float]] = [[] for _ in orders.rows]
    ends: list[list[float]] = [[] for _ in orders.rows]
    moved = True
    while moved:
        moved = False
        for stage, row in enumerate(orders.rows):
            while len(ends[stage]) < len(row):
                work = row[len(ends[stage])]
                place = orders.place(stage, work.turn)
                needed = _needs(work, place, last)
                if any(need not in done for need in needed):
                    break
                free = ends[stage][-1] if ends[stage] else 0.0
                ready = (
                    done[need] + times.latency * (orders.chunk(need[2])[0] != stage)
                    for need in needed
                )
                begin = max([free, *ready])
                sends = times.message if _sends(orders, work, stage, place, last) else 0.0
                end = begin + times.of(work, stage, orders.turns) + sends
                kind = INPUT if work.kind == BACKWARD else work.kind
                done[kind, work.part, place] = end
                begins[stage].append(begin)
                ends[stage].append(end)
                moved = True
    if any(len(own) < len(row) for own, row in zip(ends, orders.rows, strict=True)):
        raise ValueError("stages wait for each other: the orders cannot be followed")
    if sum(kind == INPUT for kind, _, _ in done) != orders.parts * (last + 1):
        raise ValueError("a task is missing")
    return Timeline(orders, tuple(map(tuple, begins)), tuple(map(tuple, ends)))


def _needs(work: Work, place: int, last: int) -> Sequence[tuple[str, int, int]]:
    """What must be done before a task: (kind, part, place)."""
    if work.kind == FORWARD:
        return [(FORWARD, work.part, place - 1)] if place else []
    if work.kind == WEIGHTS:
        return [(INPUT, work.part, place)]
    own = [(FORWARD, work.part, place)]
    return own if place == last else [*own, (INPUT, work.part, place + 1)]


def _sends(orders: Orders, work: Work, stage: int, place: int, last: int) -> bool:
    if work.kind == WEIGHTS:
        return False
    to = place + 1 if work.kind == FORWARD else place - 1
    return 0 <= to <= last and orders.chunk(to)[0] != stage
