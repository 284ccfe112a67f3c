"""Nets and the devices that they run on, searched at once: what exceeds a limit is not trained.

Source: NASAIC (arXiv 2002.04116). Its chips are meshes here, its two parts of a chip two parts of
a cluster, and its templates of dataflow uses of a mesh's axes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from gam_jax.planning.cluster import cluster
from gam_jax.planning.search import plan
from gam_jax.planning.traces import Run
from gam_jax.planning.work import Candidate
from gam_jax.search import Gate, Limit, Point, penalty, through
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


@dataclasses.dataclass
class Cosearch:
    """Measures designs for `gam_jax.search.search`: prices, then limits, then training.

    Attributes:
      price: of a point: its figures, or a UserError.
      limits: on the figures.
      nets: of a point: what is trained of it.
      accuracy: of a net, by training it; it is asked once a net.
      trained: the accuracies that were asked for.
      above: of those, how many for a design with a penalty.
      stopped: designs that were not trained.
    """

    price: Callable[[Point], Mapping[str, float]]
    limits: Sequence[Limit]
    nets: Callable[[Point], Sequence[Hashable]]
    accuracy: Callable[[Any], float]
    trained: dict[Any, float] = dataclasses.field(default_factory=dict)
    above: int = 0
    stopped: int = 0

    def measure(self, points: Sequence[Point]) -> list[float]:
        """Less the reward of each: infinity where there is no price."""
        return [self._score(point) for point in points]

    def figures(self, point: Point) -> dict[str, float]:
        """Prices of a point, and its penalty.

        Raises:
          UserError: it cannot be.
        """
        figures = dict(self.price(point))
        return {**figures, "penalty": penalty(figures, self.limits)}

    def reward(self, point: Point) -> float:
        """The mean accuracy of a design without a penalty, whose nets are trained now.

        Raises:
          UserError: see `figures`; or a penalty.
        """
        if penalty(self.price(point), self.limits) > 0:
            raise UserError("a design that exceeds a limit is not trained")
        return self._accuracy(point)

    def _score(self, point: Point) -> float:
        told: dict[str, float] = {}

        def priced(point: Point) -> Mapping[str, float]:
            told.update(self.figures(point))
            return told

        def within(point: Point) -> None:
            if told["penalty"] > 0:
                raise UserError(f"a penalty of {told['penalty']:.3g}")

        verdict = through((Gate(PRICES, priced), Gate(LIMITS, within)), point)
        if verdict.refused:
            self.stopped += 1
            return PENALTY * told["penalty"] if told else float("inf")
        return -self._accuracy(point)

    def _accuracy(self, point: Point) -> float:
        nets = self.nets(point)
        for net in nets:
            if net not in self.trained:
                self.above += penalty(self.price(point), self.limits) > 0
                self.trained[net] = self.accuracy(net)
        return sum(self.trained[net] for net in nets) / len(nets)
