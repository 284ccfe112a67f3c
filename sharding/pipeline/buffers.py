"""Where each stage of a table keeps what it is sent, known in advance: slots are used again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from sharding.pipeline.tables import Table, Task, ticks_of

COLUMNS = (
    "forward_part",
    "forward_turn",
    "forward_slot",
    "backward_part",
    "backward_turn",
    "backward_slot",
    "gradient_slot",
    "input_arrives",
    "gradient_arrives",
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A table as numbers, for a program that all stages run.

    Attributes:
      columns: int32 [ticks, stages] each, -1 for nothing. Part and turn of the tasks; the slots of
        inputs that they read, and that of the gradient which the backward task reads; the slots
        into which an input and a gradient go that arrive at the start of the tick.
      inputs: slots for inputs, as many as the stage needs that needs most.
      gradients: slots for gradients, likewise.
    """

    columns: Mapping[str, np.ndarray]
    inputs: int
    gradients: int


@dataclasses.dataclass(frozen=True)
class _Stay:
    """What lies in a slot: of which task, from the tick of its arrival to its last use."""

    begin: int
    end: int
    task: Task


def plan_of(table: Table) -> Plan:
    """Gives each input and gradient that is sent a slot that is free while it is needed.

    The first chunk's input and the last chunk's gradient are not sent: they are made where they
    are used.
    """
    forward, backward = ticks_of(table.forward), ticks_of(table.backward)
    shape = (table.ticks, table.stages)
    columns = {name: np.full(shape, -1, np.int32) for name in COLUMNS}
    inputs = gradients = 0
    for stage in range(table.stages):
        tasks = [task for own, task in forward if own == stage]
        kept, sent = [], []
        for task in tasks:
            there, back = forward[stage, task], backward[stage, task]
            columns["forward_part"][there, stage] = task.part
            columns["forward_turn"][there, stage] = task.turn
            columns["backward_part"][back, stage] = task.part
            columns["backward_turn"][back, stage] = task.turn
            if source := table.before(stage, task.turn):
                arrives = forward[source[0], Task(task.part, source[1])] + 1
                kept.append(_Stay(arrives, back, task))
            if source := table.after(stage, task.turn):
                arrives = backward[source[0], Task(task.part, source[1])] + 1
                sent.append(_Stay(arrives, back, task))
        slots, most = _slots(kept)
        inputs = max(inputs, most)
        for stay, slot in slots.items():
            columns["input_arrives"][stay.begin, stage] = slot
            columns["forward_slot"][forward[stage, stay.task], stage] = slot
            columns["backward_slot"][stay.end, stage] = slot
        slots, most = _slots(sent)
        gradients = max(gradients, most)
        for stay, slot in slots.items():
            columns["gradient_arrives"][stay.begin, stage] = slot
            columns["gradient_slot"][stay.end, stage] = slot
    return Plan(columns, inputs, gradients)


def _slots(stays: list[_Stay]) -> tuple[dict[_Stay, int], int]:
    """The first free slot for each, in the order of arrival; and how many there are."""
    found: dict[_Stay, int] = {}
    until: list[int] = []  # of each slot, the last tick in which it is read
    for stay in sorted(stays, key=lambda stay: (stay.begin, stay.end)):
        free = [slot for slot, end in enumerate(until) if end < stay.begin]
        slot = free[0] if free else len(until)
        until[slot : slot + 1] = [stay.end]
        found[stay] = slot
    return found, len(until)
