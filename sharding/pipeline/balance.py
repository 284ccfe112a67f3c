"""How many neighbouring layers each stage takes, so that the slowest is as fast as can be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

from sharding.errors import UserError

T = TypeVar("T")


def balance(costs: Sequence[float], speeds: Sequence[float]) -> tuple[int, ...]:
    """Layers of each stage, so that the slowest stage is as fast as can be.

    A stage takes the sum of its layers' costs over its speed. Each gets one layer at least. Of
    several best ways it is the one whose first stages are fullest.

    Args:
      costs: of each layer, from the first; not negative.
      speeds: of each stage, from the first; positive.

    Raises:
      UserError: fewer layers than stages, a speed that is not positive, a cost below zero.
    """
    layers, stages = len(costs), len(speeds)
    if stages < 1 or layers < stages:
        raise UserError(f"{layers} layers cannot be dealt to {stages} stages, at least one each")
    if not all(math.isfinite(s) and s > 0 for s in speeds):
        raise UserError(f"speeds {', '.join(map(str, speeds))}: they must be above 0")
    if not all(math.isfinite(c) and c >= 0 for c in costs):
        raise UserError("costs of layers must not be negative")
    sums = list(itertools.accumulate(costs, initial=0.0))
    # slowest[l]: of the first l layers on the stages so far, by the best way
    slowest: list[float] = [0.0] + [math.inf] * layers
    cuts: list[list[int]] = []
    for speed in speeds:
        best, cut = [math.inf] * (layers + 1), [0] * (layers + 1)
        for end in range(1, layers + 1):
            for begin in range(end):
                time = max(slowest[begin], (sums[end] - sums[begin]) / speed)
                if time <= best[end]:
                    best[end], cut[end] = time, begin
        slowest = best
        cuts.append(cut)
    found, end = [], layers
    for cut in reversed(cuts):
        found.append(end - cut[end])
        end = cut[end]
    return tuple(reversed(found))


def to_turns(layers: Sequence[int], turns: int) -> tuple[int, ...]:
    """Layers of each chunk, those of all stages' first turn first, from the layers of each stage.

    Chunks of a stage differ by one at most; the first ones have more.
    """
    return tuple((n + left) // turns for left in reversed(range(turns)) for n in layers)


def parsed(text: str, name: str, kind: type[int] | type[float]) -> tuple[float, ...]:
    """Numbers of stages as a command line gives them, "5,3"; () for none.

    Args:
      text: what is given.
      name: of the field, for the message.
      kind: of the numbers.

    Raises:
      UserError: what is no number, or not above 0.
    """
    try:
        found = tuple(kind(word) for word in text.split(",")) if text else ()
    except ValueError:
        found = (0,)
    if not all(math.isfinite(x) and x > 0 for x in found):
        raise UserError(f"{name}={text}: give a number above 0 for each stage, as 5,3")
    return found


def slowest(costs: Sequence[float], speeds: Sequence[float], layers: Sequence[int]) -> float:
    """The time of the slowest stage."""
    groups = split(costs, layers)
    return max(sum(own) / speed for own, speed in zip(groups, speeds, strict=True))


def split(items: Sequence[T], counts: Sequence[int]) -> list[list[T]]:
    """Neighbouring items of each stage; the counts' sum is that of the items."""
    ends = list(itertools.accumulate(counts, initial=0))
    return [list(items[a:b]) for a, b in itertools.pairwise(ends)]


def floor_rule(layers: int, speeds: Sequence[float], alpha: float = 1.0) -> tuple[int, ...]:
    """The published rule: floor(alpha L S / sum S) layers a stage, the rest to the last one.

    It may leave a stage slower than `balance` does. Source: Holmes (arXiv 2312.03549), whose
    released recipes, 16 + 14 of 30 layers and 26 + 22 of 48, are those of speeds 197 and 160.

    Args:
      layers: of the model.
      speeds: measured, of each stage.
      alpha: the rule's factor.
    """
    total = sum(speeds)
    own = [math.floor(alpha * layers * speed / total) for speed in speeds[:-1]]
    return (*own, layers - sum(own))
