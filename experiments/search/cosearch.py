"""Nets and the devices that they run on, searched at once: what exceeds a limit is not trained.

Source: NASAIC (arXiv 2002.04116). Its chips are meshes here, its two parts of a chip two parts of
a cluster, and its templates of dataflow uses of a mesh's axes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

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
Net = tuple[str, str]
"""A task, and the name of a net for it."""


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


def limits_at(percentile: float, figures: Iterable[Mapping[str, float]]) -> tuple[Limit, ...]:
    """A limit on each figure at this percentile of it, its bound the largest.

    Args:
      percentile: from 0 to 100.
      figures: of all designs.

    Raises:
      UserError: there are no designs, or so many have the largest of a figure that none exceeds
        the limit.
    """
    every = list(figures)
    if not every:
        raise UserError("limits: no design can be: give nets and devices that fit")
    found = []
    for name in every[0]:
        own = [each[name] for each in every]
        most, bound = float(np.percentile(own, percentile)), max(own)
        if most >= bound:
            raise UserError(
                f"limits: no design exceeds percentile {percentile:g} of {name}, {most:g}: "
                "give a lower one, or designs that differ"
            )
        found.append(Limit(name, most, bound))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Landscape:
    """All designs of two nets on two parts of a cluster, and what each costs.

    Attributes:
      space: `TASK` and `TASK style` for both, and `devices`, how many each has.
      prices: of each task's nets, by devices and style.
      limits: on figures of designs, above 0.

    Raises:
      UserError: a limit that is not above 0: figures are told as parts of it.
    """

    space: Space
    prices: Mapping[str, Mapping[str, Mapping[tuple[int, str], Price]]]
    limits: tuple[Limit, ...]

    def __post_init__(self) -> None:
        for limit in self.limits:
            if limit.most <= 0:
                raise UserError(f"limit of {limit.name}: {limit.most}: give one above 0")

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

    def nets(self, point: Point) -> list[Net]:
        """Of a design."""
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
class Counted:
    """Accuracies of nets, and how many were asked for by a design that exceeds a limit.

    It compares figures with limits itself, so that it would find a search that trains too early.

    Attributes:
      land: the designs.
      accuracy: of a net.
      above: how many.
    """

    land: Landscape
    accuracy: Callable[[Net], float]
    above: int = 0

    def __call__(self, net: Net, point: Point) -> float:
        """The accuracy of a net that a design asks for."""
        figures = self.land.price(point)
        self.above += not all(figures[limit.name] <= limit.most for limit in self.land.limits)
        return self.accuracy(net)


@dataclasses.dataclass
class Cosearch:
    """Measures designs for `gam_jax.search.search`: prices, then limits, then training.

    Attributes:
      land: the designs.
      accuracy: (net, design) -> accuracy, by training the net; it is asked once a net.
      trained: the accuracies that were asked for.
      stopped: designs that were not trained.
    """

    land: Landscape
    accuracy: Callable[[Net, Point], float]
    trained: dict[Net, float] = dataclasses.field(default_factory=dict)
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
                self.trained[net] = self.accuracy(net, point)
        return sum(self.trained[net] for net in nets) / len(nets)


def best_of(land: Landscape, accuracy: Callable[[Net], float]) -> float:
    """The reward of the best design within all limits, by trying all.

    Raises:
      UserError: no design is within all limits.
    """
    own = Cosearch(land, lambda net, _: accuracy(net))
    within = [p for p, each in land.figures().items() if penalty(each, land.limits) == 0]
    if not within:
        raise UserError("no design is within all limits: raise one")
    return max(own.reward(point) for point in within)


def nets_first(land: Landscape, accuracy: Callable[[Net], float]) -> tuple[Point, float]:
    """The nets of the best accuracy, then the devices for them: of the least penalty, and fastest.

    Returns:
      The design and its reward.

    Raises:
      UserError: there are no devices on which these nets can be.
    """
    wanted = [
        max(((task, name) for name in own), key=accuracy) for task, own in land.prices.items()
    ]
    told = {point: land.told(point) for point in land.figures() if land.nets(point) == wanted}
    if not told:
        names = " and ".join(f"{name} ({task})" for task, name in wanted)
        raise UserError(f"nets first: {names} cannot be on any of the devices together")
    point = min(told, key=lambda p: (told[p]["penalty"], told[p]["seconds"]))
    mean = sum(map(accuracy, wanted)) / len(wanted)
    return point, mean - PENALTY * told[point]["penalty"]
