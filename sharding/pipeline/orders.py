"""Free orders of a pipeline: each stage does its own list of tasks, each as soon as it can.

In contrast to the tables of `tables.py` no stage waits for a tick. Zero-bubble orders cut the
backward pass in two: the gradient of a chunk's input, which the stage before waits for, and that of
its weights, for which nobody waits.

Sources: 1F1B and interleaved 1F1B (arXiv 2104.04473, section 2.2); ZB-H1, ZB-H2 and ZB-V
(arXiv 2401.10241).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from sharding.errors import UserError

Kind = Literal["forward", "backward", "input", "weights"]
FORWARD: Kind = "forward"
BACKWARD: Kind = "backward"
INPUT: Kind = "input"
WEIGHTS: Kind = "weights"
"""`backward` is `input` and `weights` in one."""


class Work(NamedTuple):
    """A task of a stage.

    Attributes:
      kind: what is done.
      part: of the batch.
      turn: chunk of the stage.
    """

    kind: Kind
    part: int
    turn: int = 0


@dataclasses.dataclass(frozen=True)
class Orders:
    """What each stage does, one task after another.

    Attributes:
      parts: of a batch.
      turns: chunks of a stage.
      rows: of each stage, its tasks.
      folded: whether the way of a part turns round at the last stage (a V) and comes back, instead
        of beginning again at the first.
    """

    parts: int
    turns: int
    rows: tuple[tuple[Work, ...], ...]
    folded: bool = False

    @property
    def stages(self) -> int:
        """How many there are."""
        return len(self.rows)

    def place(self, stage: int, turn: int) -> int:
        """Where a chunk stands on the way that a part takes, from 0."""
        if self.folded and turn % 2:
            stage = self.stages - 1 - stage
        return turn * self.stages + stage

    def chunk(self, place: int) -> tuple[int, int]:
        """(stage, turn) of a place."""
        turn, stage = divmod(place, self.stages)
        return (self.stages - 1 - stage if self.folded and turn % 2 else stage), turn


def gpipe(stages: int, parts: int) -> Orders:
    """All forward, then all backward."""
    row = (
        *(Work(FORWARD, j) for j in range(parts)),
        *(Work(BACKWARD, j) for j in range(parts)),
    )
    return Orders(parts, 1, (row,) * stages)


def one_f_one_b(stages: int, parts: int) -> Orders:
    """Stage r keeps p - r inputs: so many forward, then one backward and one forward in turn."""
    return Orders(parts, 1, tuple(_one_f_one_b(stages - r, parts) for r in range(stages)))


def _one_f_one_b(ahead: int, parts: int) -> tuple[Work, ...]:
    found = [Work(FORWARD, j) for j in range(min(ahead, parts))]
    for j in range(parts):
        found.append(Work(BACKWARD, j))
        if j + ahead < parts:
            found.append(Work(FORWARD, j + ahead))
    return tuple(found)


def interleaved(stages: int, parts: int, turns: int) -> Orders:
    """Several chunks a stage; parts go in groups of as many as there are stages.

    Raises:
      UserError: parts that are no multiple of the stages.
    """
    if parts % stages:
        raise UserError(f"{parts} parts: interleaved parts go in groups of {stages}, one a stage")
    groups = range(parts // stages)

    def order(kind: Kind, turn: Callable[[int], int]) -> list[Work]:
        return [
            Work(kind, group * stages + own, turn(chunk))
            for group in groups
            for chunk in range(turns)
            for own in range(stages)
        ]

    ahead, back = order(FORWARD, lambda c: c), order(BACKWARD, lambda c: turns - 1 - c)

    def row(stage: int) -> Iterator[Work]:
        first = min(2 * (stages - stage - 1) + (turns - 1) * stages + 1, len(ahead))
        yield from ahead[:first]
        for i, task in enumerate(back):
            yield task
            yield from ahead[first + i : first + i + 1]

    return Orders(parts, turns, tuple(tuple(row(stage)) for stage in range(stages)))


def zb_h1(stages: int, parts: int) -> Orders:
    """As 1F1B, but each stage keeps p parts: stage r puts weights' gradients off by r parts."""
    rows = (_split(stages - r, r, parts) for r in range(stages))
    return Orders(parts, 1, tuple(rows))


def zb_h2(stages: int, parts: int) -> Orders:
    """Each stage keeps 2 p - 1 parts: so many that it need not wait once it has begun."""
    rows = (_split(2 * (stages - r) - 1, 2 * r, parts) for r in range(stages))
    return Orders(parts, 1, tuple(rows))


def _split(ahead: int, put_off: int, parts: int) -> tuple[Work, ...]:
    """So many forward; then backward, the weights of so many parts before, and forward in turn."""
    found = [Work(FORWARD, j) for j in range(min(ahead, parts))]
    for j in range(parts):
        found.append(Work(INPUT, j))
        if j >= put_off:
            found.append(Work(WEIGHTS, j - put_off))
        if j + ahead < parts:
            found.append(Work(FORWARD, j + ahead))
    found += [Work(WEIGHTS, j) for j in range(max(0, parts - put_off), parts)]
    return tuple(found)


def zb_v(stages: int, parts: int) -> Orders:
    """Two chunks a stage along a V: the last place stands on the first stage, beside the first.

    A stage keeps 2 p half chunks, as many bytes as the first stage of 1F1B, and with equal times
    of the three kinds of tasks no stage waits between its first and its last.

    Raises:
      UserError: fewer parts than 2 p - 1, which the order needs to fill.
    """
    if parts < 2 * stages - 1:
        raise UserError(f"ZB-V of {stages} stages needs at least {2 * stages - 1} parts: {parts}")
    return Orders(parts, 2, tuple(_v_row(stages, r, parts) for r in range(stages)), folded=True)


def _v_row(stages: int, stage: int, parts: int) -> tuple[Work, ...]:
    """Turn 0 goes down the V, turn 1 comes back."""
    found: list[Work] = []
    done: dict[tuple[Kind, int], int] = {}

    def add(*tasks: tuple[Kind, int]) -> None:
        for kind, turn in tasks:
            part = done.get((kind, turn), 0)
            if part < parts:
                found.append(Work(kind, part, turn))
                done[kind, turn] = part + 1

    down: tuple[Kind, int] = (FORWARD, 0)
    back: tuple[Kind, int] = (FORWARD, 1)
    input_down: tuple[Kind, int] = (INPUT, 0)
    input_back: tuple[Kind, int] = (INPUT, 1)
    weights_down: tuple[Kind, int] = (WEIGHTS, 0)
    weights_back: tuple[Kind, int] = (WEIGHTS, 1)
    for _ in range(2 * (stages - stage) - 1):  # until the first part has come back
        add(down)
    for _ in range(stage):
        add(back, down)
    for _ in range(stages - stage):  # the way back empties while the way down is full
        add(back, input_back, weights_back)
    while done.get(back, 0) < parts:
        add(down, input_down, weights_down, back, input_back, weights_back)
    for _ in range(stage):  # nobody waits for weights: first what the stage before waits for
        add(input_down, input_back)
    for _ in range(stages - stage):
        add(input_down, weights_down)
    for _ in range(parts):
        add(weights_back)
    for _ in range(parts):
        add(weights_down)
    return tuple(found)
