"""Which device stands where in a mesh, for measured bandwidths between every two of them.

Source: Pipette (arXiv 2405.18093), whose annealing takes the same five moves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

EXACT = 8
"""Up to so many devices every order is tried."""

Order = tuple[int, ...]


def seconds(
    order: Sequence[int], bandwidth: np.ndarray, mesh: Mapping[str, int], sent: Mapping[str, float]
) -> float:
    """Seconds of the rings of every axis, each as fast as the slowest step of any of them.

    Args:
      order: the device at each place of the mesh, row by row.
      bandwidth: bytes a second from each device to each other, [N, N].
      mesh: sizes of the axes, the outermost first.
      sent: bytes that each device sends along an axis.
    """
    grid, total = np.asarray(order).reshape(tuple(mesh.values())), 0.0
    for axis, (name, size) in enumerate(mesh.items()):
        if size > 1 and sent.get(name, 0.0):
            slowest = bandwidth[grid, np.roll(grid, -1, axis)].min()
            total += sent[name] / slowest
    return total


def best_order(
    bandwidth: np.ndarray,
    mesh: Mapping[str, int],
    sent: Mapping[str, float],
    seed: int = 0,
    steps: int = 20_000,
) -> tuple[Order, float]:
    """The order with the fewest seconds, and these: of all up to `EXACT` devices, else annealed.

    Rings are as fast from whichever device they begin, so the first device stays at the first
    place where all orders are tried.
    """
    count = len(bandwidth)

    def cost(order: Order) -> float:
        return seconds(order, bandwidth, mesh, sent)

    if count <= EXACT:
        every = ((0, *rest) for rest in itertools.permutations(range(1, count)))
        return min(((order, cost(order)) for order in every), key=lambda found: found[1])
    return anneal(cost, count, seed, steps)


def anneal(
    cost: Callable[[Order], float], count: int, seed: int = 0, steps: int = 20_000
) -> tuple[Order, float]:
    """The best order that simulated annealing meets, from the identity on.

    A worse order is accepted with probability exp(-d / T), d being how much worse it is as a share
    of the best, and T falling from 0.1 to 0.0001.

    Args:
      cost: of an order of 0 ... count - 1.
      count: how many are ordered.
      seed: of the moves.
      steps: orders that are tried.
    """
    random = np.random.default_rng(seed)
    order: Order = tuple(range(count))
    now = least = cost(order)
    best = order
    for step in range(steps):
        heat = 0.1 * (1e-3) ** (step / max(steps - 1, 1))
        other = _moved(order, random)
        found = cost(other)
        worse = (found - now) / least if least else found - now
        if worse <= 0 or random.random() < math.exp(-worse / heat):
            order, now = other, found
        if now < least:
            best, least = order, now
    return best, least


def _moved(order: Order, random: np.random.Generator) -> Order:
    """Two change places, a segment is reversed, one or a segment moves, as it is or reversed."""
    first, last = sorted(random.choice(len(order), 2, replace=False).tolist())
    kind = int(random.integers(5))
    if kind == 0:
        swapped = list(order)
        swapped[first], swapped[last] = swapped[last], swapped[first]
        return tuple(swapped)
    segment = order[first : last + 1]
    if kind == 1:
        return (*order[:first], *segment[::-1], *order[last + 1 :])
    if kind == 2:
        segment = segment[:1]
    rest = (*order[:first], *order[first + len(segment) :])
    place = int(random.integers(len(rest) + 1))
    segment = segment[::-1] if kind == 4 else segment
    return (*rest[:place], *segment, *rest[place:])
