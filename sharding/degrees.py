"""Over how many devices each kind of state is split: ZeRO as a table of degrees.

M parameters trained in 16 bits with Adam take 2M bytes for weights, 2M for gradients and 12M for
the optimizer's state (a float32 master copy and two moments). Each kind may be split over a group
of devices of its own size, its degree. The groups are nested: weights, which are sent most often,
over the smallest, whose links are the fastest. A data axis in levels, as `--mesh=data=2x2x2`, says
which groups there are: the devices of its innermost levels.

Sources: ZeRO (arXiv 1910.02054); MiCS (arXiv 2205.00119); the second copy of ZeRO++, hpZ (arXiv
2306.10209); three levels, "Scaling Large Language Model Training on Frontier with Low-Bandwidth
Partitioning" (arXiv 2501.04266).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from sharding.errors import UserError, unknown


@dataclasses.dataclass(frozen=True)
class Degrees:
    """How many devices each kind of state is split over.

    Attributes:
      weights: what layers are computed with.
      gradients: while the parts of a batch are summed.
      state: of the optimizer; updates are computed in as many parts.
      secondary: of a second copy of the weights, gathered once a step, from which layers are
        gathered; 0 for none.
    """

    weights: int = 1
    gradients: int = 1
    state: int = 1
    secondary: int = 0


Row = Callable[[int, int], Degrees]
"""(devices of the data axis, those of all its levels but the outermost) -> degrees."""

TABLE: Mapping[str, Row] = {
    "data": lambda n, g: Degrees(1, 1, 1),
    "zero1": lambda n, g: Degrees(1, 1, n),
    "zero2": lambda n, g: Degrees(1, n, n),
    "fully_sharded": lambda n, g: Degrees(n, n, n),
    "mics": lambda n, g: Degrees(g, g, g),
    "hpz": lambda n, g: Degrees(n, n, n, g),
}
"""Word of a preset -> its degrees."""

IN_LEVELS = ("mics", "hpz")
"""Words that mean nothing where all devices are in one level."""

KINDS = tuple(field.name for field in dataclasses.fields(Degrees))


def parsed(text: str, what: str = "parallel.shards") -> Degrees:
    """ "weights:2,gradients:4,state:8" as degrees; what is not named has that of the kind before.

    Raises:
      UserError: an unknown kind, one given twice, no number, or degrees that do not nest.
    """
    given = numbers(text, KINDS, what)
    for kind, degree in given.items():
        if degree < 1:
            raise UserError(
                f"{what}={text}: {kind}:{degree} is no number of devices: give 1 or more"
            )
    weights = given.get("weights", 1)
    gradients = given.get("gradients", weights)
    found = Degrees(weights, gradients, given.get("state", gradients), given.get("secondary", 0))
    for inner, outer in (("weights", "gradients"), ("gradients", "state")):
        if getattr(found, outer) % getattr(found, inner):
            raise UserError(
                f"{what}={text}: {inner}:{getattr(found, inner)} does not nest in "
                f"{outer}:{getattr(found, outer)}: the one must divide the other"
            )
    if found.secondary and (
        weights % found.secondary or found.secondary == weights
    ):  # of as many, it would be the same copy
        raise UserError(
            f"{what}={text}: secondary:{found.secondary} is no smaller group inside "
            f"weights:{weights}: it must divide it and be less"
        )
    return found


def in_words(degrees: Degrees) -> str:
    """What `parsed` reads: "weights:2,gradients:4,state:8"."""
    return ",".join(f"{kind}:{getattr(degrees, kind)}" for kind in KINDS if getattr(degrees, kind))


def numbers(text: str, names: Sequence[str], what: str) -> dict[str, int]:
    """ "name:number,..." as a dict.

    Raises:
      UserError: an unknown name, one given twice, or no number.
    """
    found: dict[str, int] = {}
    for entry in filter(None, text.split(",")):
        name, _, number = entry.partition(":")
        if name not in names:
            raise UserError(f"{what}={text}: {unknown(name, names)}")
        if name in found:
            raise UserError(f"{what}={text}: '{name}' is given twice: give it once")
        try:
            found[name] = int(number)
        except ValueError:
            raise UserError(f"{what}={text}: '{entry}' should look like {name}:2") from None
    return found


def groups(levels: Sequence[int]) -> tuple[int, ...]:
    """The degrees that there are: devices of the innermost 0, 1, ... levels.

    Args:
      levels: devices along each, the outermost first.
    """
    return tuple(math.prod(levels[len(levels) - count :]) for count in range(len(levels) + 1))


def check_levels(degrees: Degrees, levels: Sequence[int], shown: str) -> None:
    """Refuses degrees that are no groups of a data axis.

    Args:
      degrees: that are asked for.
      levels: of the data axis, the outermost first.
      shown: how they were asked for, for the message.

    Raises:
      UserError: such a degree.
    """
    there = groups(levels)
    for kind in KINDS:
        degree = getattr(degrees, kind)
        if degree not in (*there, 0):
            mesh = "x".join(map(str, levels))
            raise UserError(
                f"{shown}: {kind}:{degree} is no group of mesh axis data={mesh}, whose inner "
                f"levels have {', '.join(map(str, sorted(set(there))))} devices: choose one of "
                f"these, or give --mesh=data=... other levels"
            )


def legal(levels: Sequence[int]) -> tuple[Degrees, ...]:
    """All degrees that a data axis in these levels allows."""
    there = sorted(set(groups(levels)))
    return tuple(
        Degrees(w, g, s, second)
        for w in there
        for g in there
        for s in there
        for second in (0, *there)
        if w <= g <= s and second < w
    )


def held(params: float, degrees: Degrees) -> float:
    """Bytes of a device for `params` parameters in 16 bits, trained with Adam."""
    weights, gradients = 2 * params / degrees.weights, 2 * params / degrees.gradients
    second = 2 * params / degrees.secondary if degrees.secondary else 0
    return weights + gradients + 12 * params / degrees.state + second
