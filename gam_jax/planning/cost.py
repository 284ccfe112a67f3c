"""What a step costs: seconds by what takes them, bytes held, and what limits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from gam_jax.planning.cluster import Cluster, strides
from gam_jax.planning.overlap import decomposed
from gam_jax.planning.work import Work
from sharding.messages import Message

OVERLAPS = ("none", "decomposed", "ideal")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one step, on each device.

    Attributes:
      products: seconds of products, at the rate that the device reaches.
      memory: seconds of all that moves arrays through memory beside them.
      messages: seconds by mesh axes, "data" or "data x seq", as far as nothing hides them.
      idle: seconds that a stage of a pipeline waits for others.
      held: bytes at most.
      capacity: bytes that programs can use.
    """

    products: float
    memory: float
    messages: Mapping[str, float]
    idle: float
    held: float
    capacity: float

    @property
    def seconds(self) -> float:
        """Of the step."""
        return self.products + self.memory + sum(self.messages.values()) + self.idle

    @property
    def fits(self) -> bool:
        """Whether what is held is within the memory."""
        return self.held <= self.capacity

    @property
    def limit(self) -> str:
        """What takes the most: "products", "memory", "idle", or the axes of messages."""
        parts = {"products": self.products, "memory": self.memory, "idle": self.idle}
        parts |= {f"messages over {axes}": seconds for axes, seconds in self.messages.items()}
        return max(parts, key=lambda name: parts[name])


def cost(work: Work, cluster: Cluster, overlap: str = "none") -> Cost:
    """What work costs on a cluster.

    Products and passes over memory follow a roofline: products take their arithmetic or their
    operands, whichever is longer. A collective is a ring on each level that it crosses, see
    `seconds_of`.

    Args:
      work: of one device.
      cluster: whose devices.
      overlap: of messages with products. "none": one after the other. "decomposed": each message
        goes in as many parts as its axis has devices, beside as many parts of a product, whose
        first none hides (Wang et al., ASPLOS 2023). "ideal": messages cost what products do not
        hide.

    Raises:
      UserError: a figure of the profile that nobody has said.
    """
    profile = cluster.profile
    rates = {dtype: profile.flops(dtype) for dtype in work.flops}
    arithmetic = sum(count / rates[dtype] for dtype, count in work.flops.items())
    products = max(arithmetic, work.product_bytes / profile.bandwidth)
    memory = work.other_bytes / profile.bandwidth
    by_axes: dict[str, float] = {}
    devices: dict[str, int] = {}
    for message in work.messages:
        if message.devices == 1 or not message.count:
            continue
        axes = " x ".join(message.axes)
        seconds = seconds_of(message, cluster, work.mesh)
        by_axes[axes] = by_axes.get(axes, 0.0) + seconds
        devices[axes] = message.devices
    shown = _exposed(by_axes, devices, products, overlap)
    return Cost(products, memory, shown, work.idle, work.held, profile.memory.capacity)


def _exposed(
    messages: Mapping[str, float], devices: Mapping[str, int], products: float, overlap: str
) -> dict[str, float]:
    """Seconds of messages that products do not hide."""
    total = sum(messages.values())
    if overlap == "none" or not total:
        return dict(messages)
    found = {}
    for axes, seconds in messages.items():
        beside = products * seconds / total  # each axis has its share of the products
        parts = devices[axes]
        if overlap == "ideal":
            left = max(seconds - beside, 0.0)
        else:
            left = min(decomposed(beside, seconds, parts) - beside, seconds)
        found[axes] = max(left, 0.0)
    return found


def seconds_of(message: Message, cluster: Cluster, mesh: Mapping[str, int]) -> float:
    """Seconds of equal collectives on a cluster.

    Over several axes it runs on each of them, the innermost first; on each axis as rings on every
    level of links that the axis crosses, hierarchically: what is gathered or reduced inside is
    sent outside once. A permutation waits for the slowest level.

    Args:
      message: what is sent.
      cluster: whose links.
      mesh: sizes of all its axes, the outermost first.
    """
    apart = strides(dict(mesh))
    crossed = [
        level
        for axis in sorted(message.axes, key=lambda name: apart[name])
        for level in cluster.crossed(apart[axis], mesh[axis])
    ]
    return message.count * _one(message.collective, message.size, crossed)


def _one(collective: str, size: float, crossed: Iterable[tuple[int, float, float]]) -> float:
    """Seconds of one collective over (members, bytes a second, latency), the innermost first."""
    levels = list(crossed)
    devices = math.prod(members for members, _, _ in levels)
    if devices == 1:
        return 0.0
    if collective == "permute":
        return max(size / bandwidth + latency for _, bandwidth, latency in levels)
    if collective == "all_gather":  # the reverse of scattering what is whole in the end
        return _one("reduce_scatter", size * devices, levels)
    if collective == "all_reduce":
        return 2 * _one("reduce_scatter", size, levels)
    seconds, inside = 0.0, 1
    for members, bandwidth, latency in levels:
        if collective == "all_to_all":  # to each device its own part
            sent = size * inside * (members - 1) / devices
        else:
            sent = size / inside * (members - 1) / members
        seconds += sent / bandwidth + (members - 1) * latency
        inside *= members
    return seconds
