"""What runs beside what: products, memory and messages of one device at the same time.

Sources: T3 (arXiv 2401.16677) and Wang et al. (ASPLOS 2023) for a product and its collective;
NanoFlow (arXiv 2408.12757) for operations of several kinds on parts of one batch; CO2 (arXiv
2401.16265) for steps of workers and the sum of the round before.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from sharding.bounds import NotNegative, check_bounds


@dataclasses.dataclass(frozen=True)
class Operation:
    """One step of a schedule.

    Attributes:
      name: by which others wait for it.
      resource: what it needs for itself while it runs: "compute", "memory" or "network".
      seconds: that it takes.
      after: names of operations that must have ended.
    """

    name: str
    resource: str
    seconds: NotNegative
    after: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When each operation begins and ends.

    Attributes:
      times: name -> (begin, end), seconds.
      seconds: until the last one ends.
    """

    times: Mapping[str, tuple[float, float]]
    seconds: float


def list_schedule(operations: Sequence[Operation]) -> Schedule:
    """One operation a resource at a time; of those that can begin, the one with most behind it.

    What is behind an operation is the longest chain of operations that waits for it. So no two
    operations on one resource overlap, and no resource idles while something could use it.

    Args:
      operations: in any order; each `after` names another one.

    Raises:
      ValueError: an operation waits for itself, or for one that is not there.
    """
    later = _later(operations)
    behind: dict[str, float] = {}
    for op in reversed(_in_order(operations, later)):
        behind[op.name] = op.seconds + max((behind[o.name] for o in later[op.name]), default=0.0)
    missing = {op.name: len(op.after) for op in operations}
    ready = [op for op in operations if not op.after]
    earliest = dict.fromkeys(missing, 0.0)
    free: dict[str, float] = {}
    times: dict[str, tuple[float, float]] = {}

    def begin(op: Operation) -> float:
        return max(free.get(op.resource, 0.0), earliest[op.name])

    while ready:
        chosen = min(ready, key=lambda op: (begin(op), -behind[op.name]))
        start = begin(chosen)
        end = start + chosen.seconds
        times[chosen.name], free[chosen.resource] = (start, end), end
        ready.remove(chosen)
        for op in later[chosen.name]:
            missing[op.name] -= 1
            earliest[op.name] = max(earliest[op.name], end)
            ready += [] if missing[op.name] else [op]
    return Schedule(times, max((end for _, end in times.values()), default=0.0))


def _later(operations: Sequence[Operation]) -> dict[str, list[Operation]]:
    """Name -> the operations that wait for it."""
    later: dict[str, list[Operation]] = {op.name: [] for op in operations}
    for op in operations:
        for name in op.after:
            if name not in later:
                raise ValueError(f"operation '{op.name}' waits for '{name}', which is not there")
            later[name].append(op)
    return later


def _in_order(
    operations: Sequence[Operation], later: Mapping[str, list[Operation]]
) -> list[Operation]:
    """Each operation after those that it waits for."""
    missing = {op.name: len(op.after) for op in operations}
    order = [op for op in operations if not op.after]
    for op in order:
        for other in later[op.name]:
            missing[other.name] -= 1
            order += [] if missing[other.name] else [other]
    if len(order) < len(operations):
        stuck = sorted(name for name, count in missing.items() if count)
        raise ValueError(f"operations {stuck} wait for each other")
    return order


def chains(resources: Sequence[tuple[str, float]], parts: int, blocks: int) -> float:
    """Seconds of a pass whose rows are taken in parts, each through all blocks by itself.

    What one part computes runs beside what another one reads or sends (NanoFlow, section 3).

    Args:
      resources: of one part in one block: what each operation needs for itself and its seconds, in
        order; 0 seconds for none.
      parts: of the rows.
      blocks: that each part goes through, one after the other.
    """
    found = []
    for part in range(parts):
        last: tuple[str, ...] = ()
        for block in range(blocks):
            for place, (resource, seconds) in enumerate(resources):
                if seconds:
                    name = f"{part}.{block}.{place}"
                    found.append(Operation(name, resource, seconds, last))
                    last = (name,)
    return list_schedule(found).seconds


def round_seconds(every: int, step: float, collective: float, delay: int) -> float:
    """Seconds of a round of workers that meet after so many steps, see `gam_jax.local`.

    Args:
      every: steps of a round.
      step: seconds of one.
      collective: seconds of the sum over workers.
      delay: 0 where all wait for the sum, 1 where it is that of the round before.
    """
    steps = every * step
    return max(steps, collective) if delay else steps + collective


def steps_to_hide(step: float, collective: float) -> int:
    """The fewest steps of a round that hide the sum of the round before altogether."""
    return max(1, math.ceil(collective / step))


def serial(product: float, collective: float) -> float:
    """Seconds of a product and then its collective."""
    return product + collective


def decomposed(product: float, collective: float, devices: int, penalty: float = 0.0) -> float:
    """Seconds of both in N steps of a ring: t_c + (N - 1) max(t_c, t_p).

    Args:
      product: seconds of the whole product.
      collective: seconds of the whole collective.
      devices: N; a product is cut into N, a collective into N - 1 messages.
      penalty: by what part small products are slower than one large one.
    """
    if devices == 1:
        return product
    step = product * (1 + penalty) / devices
    return step + (devices - 1) * max(step, collective / (devices - 1))


def ideal(product: float, collective: float, devices: int) -> float:
    """The same without a penalty: messages begin when a tile is stored, as T3's hardware does."""
    return decomposed(product, collective, devices)


def worth_it(product: float, collective: float, devices: int, penalty: float = 0.0) -> bool:
    """Whether cutting both into steps beats doing one after the other."""
    return decomposed(product, collective, devices, penalty) < serial(product, collective)
