"""Nets and the devices that they run on, searched at once: what exceeds a limit is not trained.

Source: NASAIC (arXiv 2002.04116). Its chips are meshes here, its two parts of a chip two parts of
a cluster, and its templates of dataflow uses of a mesh's axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gam_jax.planning.cluster import cluster
from gam_jax.planning.search import plan
from gam_jax.planning.traces import Run
from gam_jax.planning.work import Candidate
from gam_jax.search import Gate, Limit, Point, Space, penalty, through
from sharding.errors import UserError
from sharding.mesh import AXIS_NAMES

PENALTY = 10.0
"""What a penalty of 1 takes off a reward."""
PRICES, LIMITS = "prices", "limits"
"""The gates before training."""

STYLES = ("data", "fully_sharded", "tensor", "square")
"""Uses of a part's devices: rows apart, parameters apart too, channels apart, rows and channels."""


def in_style(style: str, devices: int) -> Candidate:
    """So many devices used in a style, the whole batch at once.

    Args:
      style: of `STYLES`; what does nothing on one device is as if not chosen.
      devices: a power of two.
    """
    inner = {"tensor": devices, "square": 2 ** (devices.bit_length() // 2)}.get(style, 1)
    sizes = {**dict.fromkeys(AXIS_NAMES, 1), "data": devices // inner, "tensor": inner}
    data = "fully_sharded" if style == "fully_sharded" and devices > 1 else "data"
    preset = f"{data}+tensor_tokens" if inner > 1 else data
    return Candidate(tuple(sizes.items()), preset, 1, False)


@dataclasses.dataclass(frozen=True)
class Price:
    """What a net costs on a part of the devices.

    Attributes:
      seconds: of a training step.
      device_seconds: of all devices of the part together.
      held: bytes on each of them.
    """

    seconds: float
    device_seconds: float
    held: float


def prices(run: Run, shapes: Mapping[int, str]) -> dict[tuple[int, str], Price]:
    """Of a net, by number of devices and style; without those that cannot be.

    Args:
      run: see `experiments.planned.run_of`.
      shapes: number of devices -> the cluster that they are.
    """
    found: dict[tuple[int, str], Price] = {}
    traced: Any = None
    for devices, shape in shapes.items():
        styles = {style: in_style(style, devices) for style in STYLES}
        plans = plan(run, cluster(shape), set(styles.values()), known=traced)
        traced = {**(traced or {}), **plans.traced}
        costs = {each.candidate: each.cost for each in plans.priced}
        for style, candidate in styles.items():
            if candidate in costs:
                cost = costs[candidate]
                found[devices, style] = Price(cost.seconds, devices * cost.seconds, cost.held)
    return found


def together(parts: Sequence[Price]) -> dict[str, float]:
    """Of parts that run at once: the longest step, all device seconds, the fullest device."""
    return {
        "seconds": max(part.seconds for part in parts),
        "device_seconds": sum(part.device_seconds for part in parts),
        "held": max(part.held for part in parts),
    }


@dataclasses.dataclass(frozen=True)
class Landscape:
    """All designs of two nets on two parts of a cluster, and what each costs.

    Attributes:
      space: `TASK` and `TASK style` for both, and `devices`, how many each has.
      prices: of each task's nets, by devices and style.
      limits: on figures of designs.
    """

    space: Space
    prices: Mapping[str, Mapping[str, Mapping[tuple[int, str], Price]]]
    limits: tuple[Limit, ...]

    def price(self, point: Point) -> dict[str, float]:
        """Figures of a design.

        Raises:
          UserError: a net cannot be on its part so.
        """
        values = self.space.values(point)
        parts = []
        for place, task in enumerate(self.prices):
            key = values["devices"][place], values[f"{task} style"]
            own = self.prices[task][values[task]]
            if key not in own:
                raise UserError(f"{values[task]} cannot be on {key[0]} devices by {key[1]}")
            parts.append(own[key])
        return together(parts)

    def nets(self, point: Point) -> list[tuple[str, str]]:
        """Task and name of each net of a design."""
        values = self.space.values(point)
        return [(task, values[task]) for task in self.prices]

    def figures(self) -> dict[Point, dict[str, float]]:
        """Of all designs that can be."""
        found = {}
        for point in self.space.points():
            try:
                found[point] = self.price(point)
            except UserError:
                continue
        return found

    def told(self, point: Point) -> dict[str, float]:
        """Of a design: its penalty, and its figures as parts of their limits.

        Raises:
          UserError: see `price`.
        """
        figures = self.price(point)
        shares = {limit.name: figures[limit.name] / limit.most for limit in self.limits}
        return {"penalty": penalty(figures, self.limits), **shares}


@dataclasses.dataclass
class Cosearch:
    """Measures designs for `gam_jax.search.search`: prices, then limits, then training.

    Attributes:
      land: the designs.
      accuracy: of a net (its task and name), by training it; it is asked once a net.
      trained: the accuracies that were asked for.
      above: of those, how many for a design with a penalty.
      stopped: designs that were not trained.
    """

    land: Landscape
    accuracy: Callable[[tuple[str, str]], float]
    trained: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    above: int = 0
    stopped: int = 0

    def measure(self, points: Sequence[Point]) -> list[float]:
        """Less the reward of each: infinity where there is no price.

        The reward is the mean accuracy of both nets, or `PENALTY` times the penalty below 0.
        """
        return [self._score(point) for point in points]

    def reward(self, point: Point) -> float:
        """The mean accuracy of a design's nets, which are trained now.

        Raises:
          UserError: it has no price, or a penalty.
        """
        if self.land.told(point)["penalty"] > 0:
            raise UserError("a design that exceeds a limit is not trained")
        return self._trained(point)

    def _score(self, point: Point) -> float:
        told: dict[str, float] = {}

        def priced(point: Point) -> Mapping[str, float]:
            told.update(self.land.told(point))
            return told

        def within(point: Point) -> None:
            if told["penalty"] > 0:
                raise UserError(f"a penalty of {told['penalty']:.3g}")

        verdict = through((Gate(PRICES, priced), Gate(LIMITS, within)), point)
        if verdict.refused:
            self.stopped += 1
            return PENALTY * told["penalty"] if told else math.inf
        return -self._trained(point)

    def _trained(self, point: Point) -> float:
        nets = self.land.nets(point)
        for net in nets:
            if net not in self.trained:
                self.above += self.land.told(point)["penalty"] > 0
                self.trained[net] = self.accuracy(net)
        return sum(self.trained[net] for net in nets) / len(nets)


def best_of(land: Landscape, accuracy: Callable[[tuple[str, str]], float]) -> float:
    """The reward of the best design within all limits, by trying all."""
    own = Cosearch(land, accuracy)
    within = [p for p, each in land.figures().items() if penalty(each, land.limits) == 0]
    return max(own.reward(point) for point in within)


def nets_first(
    land: Landscape, accuracy: Callable[[tuple[str, str]], float]
) -> tuple[Point, float]:
    """The nets of the best accuracy, then the devices for them: of the least penalty, and fastest.

    Returns:
      The design and its reward.
    """
    wanted = [
        max(((task, name) for name in own), key=accuracy) for task, own in land.prices.items()
    ]
    told = {point: land.told(point) for point in land.figures() if land.nets(point) == wanted}
    point = min(told, key=lambda p: (told[p]["penalty"], told[p]["seconds"]))
    mean = sum(map(accuracy, wanted)) / len(wanted)
    return point, mean - PENALTY * told[point]["penalty"]
