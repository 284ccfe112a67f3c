"""Which plans there are for a served model, and what a device of each holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from experiments.study.declare import Numbers
from gam_jax.planning import profile

HALF, GIB = 2, 2**30


@dataclasses.dataclass(frozen=True)
class Served:
    """A model that is served: equal blocks of attention and a feed-forward.

    Attributes:
      blocks: of the model.
      attention, ffn: parameters of each in one block.
      cache: bytes of keys and values of one token in one block.
    """

    blocks: int
    attention: float
    ffn: float
    cache: float = 0.0


def llama_70b() -> Served:
    """Llama-3-70B: width 8,192, 64 heads of which 8 hold keys, 28,672 hidden units."""
    width, kv, hidden = 8192, 1024, 28_672
    return Served(80, 2 * width**2 + 2 * width * kv, 3.0 * width * hidden, 2 * kv * HALF)


SMALL = Served(4, 4.0 * 1024**2, 12.0 * 1024**2, 4096)
"""Four blocks of width 1,024: any plan fits."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """How devices share the work.

    Attributes:
      replicas: of the whole model.
      stages: of each, in a pipeline.
      attention, ffn: replicas of either within a stage, whose devices split the rest.
    """

    replicas: int
    stages: int
    attention: int
    ffn: int


def divisors(count: int) -> list[int]:
    """From 1 up."""
    return [n for n in range(1, count + 1) if count % n == 0]


def held(model: Served, plan: Plan, devices: int) -> float:
    """Bytes of parameters of one device, without embeddings."""
    own = devices // plan.replicas // plan.stages
    block = model.attention * plan.attention / own + model.ffn * plan.ffn / own
    return HALF * block * model.blocks / plan.stages


def plans(model: Served, devices: int, memory: float) -> Iterator[Plan]:
    """Every plan that fits and is no other one in disguise.

    Replicas, stages and replicas of sub-blocks are divisors of the devices left; replicas of the
    sub-blocks divide one another and have no common divisor, which would be more replicas.

    Args:
      model: that is served.
      devices: of the cluster.
      memory: bytes of one that parameters may take.
    """
    for replicas in divisors(devices):
        for stages in divisors(devices // replicas):
            if model.blocks % stages:
                continue
            left = divisors(devices // replicas // stages)
            for attention in left:
                for ffn in left:
                    low, high = sorted((attention, ffn))
                    plan = Plan(replicas, stages, attention, ffn)
                    whole = math.gcd(attention, ffn) == 1 and high % low == 0
                    if whole and held(model, plan, devices) <= memory:
                        yield plan


def counted(model: Served) -> Numbers:
    """Plans on two H100, and GiB of parameters by plan: tensor, stages, attention by data."""
    own = profile("h100.apex")
    memory = own.memory.capacity - own.value("memory.device.workspace")
    found: dict[str, float] = {"plans": len(list(plans(model, 2, memory)))}
    for name, plan in {"tensor": (1, 1), "stages": (1, 2), "data": (1, 1)}.items():
        split = Plan(*plan, 2 if name == "data" else 1, 1)
        found[name] = held(model, split, 2) / GIB
    return found
