"""How long updates take whose optimizer state lies in the host's memory, by a simulation.

Source: Deep Optimizer States (arXiv 2410.21316). Parameters are cut into n subgroups. Of every k,
the stride, the last is updated on the device, to which its state is copied and back; the host
updates the others meanwhile, and sends up their parameters. Plain Python that knows no model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

STATE, WEIGHT = 12, 2
"""Bytes of a parameter's float32 value and two moments; of its value in 16 bits."""


@dataclasses.dataclass(frozen=True)
class Rates:
    """What the machine does.

    Attributes:
      host: parameters a second that the host updates.
      cast: parameters a second that it rounds to 16 bits.
      device: parameters a second that the device updates.
      link: bytes a second either way, one way at a time.
    """

    host: float
    cast: float
    device: float
    link: float

    @property
    def of_host(self) -> float:
        """Seconds of a parameter that the host updates."""
        return 1 / self.host + 1 / self.cast

    @property
    def of_device(self) -> float:
        """Seconds of a parameter that the device updates: there, the update, and back."""
        return 2 * STATE / self.link + 1 / self.device

    @property
    def of_weight(self) -> float:
        """Seconds in which a parameter that the host has updated is sent up."""
        return WEIGHT / self.link


@dataclasses.dataclass(frozen=True)
class Task:
    """What is done for a subgroup.

    Attributes:
      kind: "update" or "send" of one that the host updates; "fetch", "step" or "flush" of one that
        the device updates.
      group: its number.
      start, end: seconds.
    """

    kind: str
    group: int
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Timeline:
    """All tasks of an update of all parameters.

    Attributes:
      tasks: in the order in which they were begun.
    """

    tasks: tuple[Task, ...]

    @property
    def seconds(self) -> float:
        """When the last one ends."""
        return max(task.end for task in self.tasks)

    def groups(self, kind: str) -> list[int]:
        """The subgroups for which that is done, in order."""
        return sorted(task.group for task in self.tasks if task.kind == kind)


def on_device(groups: int, stride: int) -> list[int]:
    """The subgroups that the device updates: the last of every `stride`; none of stride 0."""
    return [x for x in range(groups) if stride and (x + 1) % stride == 0]


def cycle(stride: int, size: float, rates: Rates) -> tuple[float, float]:
    """(T_host, T_device): seconds of either side for `stride` subgroups of `size` parameters."""
    others = (stride - 1) * size
    return others * rates.of_host, size * rates.of_device + others * rates.of_weight


def simulate(groups: int, stride: int, size: float, rates: Rates) -> Timeline:
    """The update of so many subgroups.

    The host goes through its subgroups in order; it has room for `stride` that it works on or that
    wait to be sent up (two, where the device updates none). The link and the device's one buffer
    work one thing after another: what the host has done in the cycle before, then the flush of the
    last subgroup and the fetch and step of the next. At the end the last one is flushed, whatever
    the remainder.

    Args:
      groups: n.
      stride: k of at least 2, or 0 for the host alone.
      size: parameters of a subgroup.
      rates: of the machine.
    """
    if stride == 1 or stride < 0 or groups < 1:
        raise ValueError(f"stride {stride} of {groups} subgroups: give 0, or at least 2, of some")
    mine = set(on_device(groups, stride))
    others = [x for x in range(groups) if x not in mine]
    room, tasks = max(stride, 2), []
    host = link = 0.0
    sent: list[float] = []
    waiting: list[Task] = []
    held: int | None = None

    def on_link(kind: str, group: int, seconds: float, after: float = 0.0) -> float:
        nonlocal link
        start = max(link, after)
        link = start + seconds
        tasks.append(Task(kind, group, start, link))
        return link

    def send() -> None:
        task = waiting.pop(0)
        sent.append(on_link("send", task.group, size * rates.of_weight, task.end))

    for place in range(groups):
        if place in mine:
            if held is not None:
                on_link("flush", held, size * STATE / rates.link)
            on_link("fetch", place, size * STATE / rates.link)
            on_link("step", place, size / rates.device)
            held = place
            continue
        number = others.index(place)
        if len(waiting) == room:
            send()
        free = sent[number - room] if number >= room else 0.0
        start = max(host, free)
        host = start + size * rates.of_host
        waiting.append(Task("update", place, start, host))
        tasks.append(waiting[-1])
    while waiting:
        send()
    if held is not None:
        on_link("flush", held, size * STATE / rates.link)
    return Timeline(tuple(tasks))


def best_stride(groups: int, size: float, rates: Rates, strides: Sequence[int] = ()) -> int:
    """The stride with which all parameters are updated soonest; 0 where the host alone is as soon.

    Args:
      groups: n.
      size: parameters of a subgroup.
      rates: of the machine.
      strides: which may be taken; all from 2 to n if none are named.
    """
    tried = (0, *(strides or range(2, groups + 1)))
    return min(tried, key=lambda k: (simulate(groups, k, size, rates).seconds, k))


def balanced_stride(rates: Rates) -> int:
    """The smallest k at which the host takes at least as long as the device's side.

    Raises:
      ValueError: the link cannot even keep up with what the host sends up.
    """
    gained = rates.of_host - rates.of_weight
    if gained <= 0:
        raise ValueError("the host is done sooner than what it sends up: the link is the limit")
    return max(2, math.ceil(1 + rates.of_device / gained))
