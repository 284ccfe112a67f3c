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
PENALTY = 0.1
"""By what part products in steps are slower, where nobody has measured it."""


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


def cost(work: Work, cluster: Cluster, overlap: str = "none", penalty: float = PENALTY) -> Cost:
    """What work costs on a cluster.

    Products and passes over memory follow a roofline: products take their arithmetic or their
    operands, whichever is longer. A collective is a ring on each level that it crosses, see
    `seconds_of`.

    Args:
      work: of one device.
      cluster: whose devices.
      overlap: of messages with products, see `gam_jax.planning.overlap`. "none": one after the
        other. "decomposed": both in as many steps as an axis has devices. "ideal": likewise, and
        small products are as fast as a large one.
      penalty: by what part small products are slower, where they are not.

    Raises:
      UserError: a figure of the profile that nobody has said.
    """
    profile = cluster.profile
    rates = {dtype: profile.flops(dtype) for dtype in work.flops}
    arithmetic = sum(count / rates[dtype] for dtype, count in work.flops.items())
    products = max(arithmetic, work.product_bytes / profile.bandwidth)
    memory = work.other_bytes / profile.bandwidth
    sent: dict[tuple[str, ...], tuple[float, int]] = {}
    for message in work.messages:
        if message.devices > 1 and message.count:
            before, _ = sent.get(message.axes, (0.0, 0))
            took = before + seconds_of(message, cluster, work.mesh)
            sent[message.axes] = took, message.devices
    total = sum(seconds for seconds, _ in sent.values())
    shown = {}
    for axes, (seconds, devices) in sent.items():
        beside = products * seconds / total if total else 0.0  # each axis has its share of them
        shown[" x ".join(axes)] = _exposed(beside, seconds, devices, overlap, penalty)
    idle = (products + memory) * work.idle
    return Cost(products, memory, shown, idle, work.held, profile.memory.capacity)


def _exposed(products: float, seconds: float, devices: int, how: str, penalty: float) -> float:
    """Seconds of messages that the products beside them do not hide."""
    if how == "none":
        return seconds
    steps = decomposed(products, seconds, devices, penalty if how == "decomposed" else 0.0)
    return min(max(steps - products, 0.0), seconds)  # nobody takes steps that are slower


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
