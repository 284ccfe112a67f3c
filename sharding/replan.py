"""A mesh for the devices that are left, when some of those that a run asked for are gone.

The rule, from the mesh that was asked for:

1. No axis grows, but the one that was given as -1 ("what is left"), if any.
2. Axes give way in this order: the -1 axis, `data`, `seq`, `tensor`. The last keep the largest
   size that any valid mesh allows; among those the next to last, and so on. So what one device
   computes and holds of a layer (its slots, channels and tokens) stays as it was while it can,
   and rows are dealt out anew first: that changes no shape but the number of rows of a device.
3. A process gives all its devices or, where one process is enough, as many as are needed. Of the
   numbers of processes that make the same mesh, the smallest: fewer talk across processes.
4. A mesh is valid if it divides over the processes (`mesh.arrange`) and the run says that it
   fits: batch, window and each parameter divide, and the layers accept their shards.

The mesh of one device is the end of the line, so that a run which fits anywhere fits somewhere.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

from sharding.errors import UserError
from sharding.mesh import AXIS_NAMES, arrange, data_levels, in_words, parse_axes

GIVE_WAY = ("data", *(name for name in AXIS_NAMES if name != "data"))
"""The first shrinks first; after `data` the outer axes, which talk least."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to start.

    Attributes:
      mesh: as a command line gives it, "data=2,seq=1,tensor=4".
      processes: how many of those that are left.
      devices: of each process, in the mesh.
    """

    mesh: str
    processes: int
    devices: int


def replan(
    wanted: str,
    processes: int,
    devices: int,
    refusal: Callable[[Mapping[str, int]], str | None],
) -> Plan:
    """The best mesh by the rule above.

    Args:
      wanted: the mesh that was asked for, as for `mesh.mesh_from_text`; empty: all on `data`.
      processes: that are left.
      devices: of each of them.
      refusal: why the run does not fit on a mesh of these sizes; None if it does. It is asked
        in the order of the rule until it has no reason, and only about sizes that the devices
        allow.

    Raises:
      UserError: no devices, words that make no mesh, data in levels, or a run that fits nowhere.
    """
    if processes < 1 or devices < 1:
        raise UserError(f"{processes} processes of {devices} devices: none are left to plan for")
    check_one_level(wanted)
    reason = ""
    for sizes in _by_preference(parse_axes(wanted) or {"data": -1}, processes * devices):
        used = processes_for(sizes, processes, devices)
        if used is None:
            continue
        found = refusal(sizes)
        if found is None:
            return Plan(in_words(sizes), used, math.prod(sizes.values()) // used)
        reason = found
    raise UserError(f"no mesh of up to {processes * devices} devices fits this run: {reason}")


def check_one_level(wanted: str) -> None:
    """Raises a UserError for a mesh that cannot be planned anew: one with data in levels."""
    if data_levels(wanted)[1]:
        raise UserError(
            f"--mesh={wanted}: meshes are planned anew with data in one level: give the number of "
            f"its devices, or start without --elastic"
        )


def _by_preference(wanted: Mapping[str, int], total: int) -> Iterator[dict[str, int]]:
    """Sizes of all meshes of at most `total` devices that the rule allows, the best first."""
    for name, size in wanted.items():
        if size < 1 and size != -1:
            raise UserError(f"mesh axis {name}={size}: give a size of at least 1, or -1")
    free = [name for name in GIVE_WAY if wanted.get(name, 1) == -1]
    if len(free) > 1:
        raise UserError("only one axis of a mesh can be -1, what is left: give the others")
    order = free + [name for name in GIVE_WAY if name not in free]
    most = {name: wanted.get(name, 1) for name in GIVE_WAY} | dict.fromkeys(free, total)
    kept_first = [range(min(most[name], total), 0, -1) for name in reversed(order)]
    for found in itertools.product(*kept_first):
        if math.prod(found) <= total:
            sizes = dict(zip(reversed(order), found, strict=True))
            yield {name: sizes[name] for name in AXIS_NAMES}


def processes_for(sizes: Mapping[str, int], processes: int, devices: int) -> int | None:
    """The fewest processes on which a mesh can lie; None if it cannot."""
    needed = math.prod(sizes.values())
    if needed <= devices:
        return 1
    used, over = divmod(needed, devices)
    if over or used > processes:
        return None
    try:
        hosts = [device // devices for device in range(needed)]
        arrange(hosts, [sizes[name] for name in AXIS_NAMES])
    except UserError:
        return None
    return used
