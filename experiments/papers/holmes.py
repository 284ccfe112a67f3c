"""Clusters with unlike networks (Holmes): stages dealt out, groups that mix, and a step's time.

Source: arXiv 2312.03549, its abstract and the recipes of its code. The reached TFLOP/s of 3.6 B
parameters are recalled by a reader; bandwidths of networks are round figures of ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from experiments.papers.gpt import HALF, Gpt
from experiments.study import Absent, Arm, Claim, Measure, Study, as_printed, closed
from experiments.study.declare import Numbers
from gam_jax.planning import profile
from sharding.pipeline.balance import balance, floor_rule

IB, ROCE, ETHERNET = "ib", "roce", "ethernet"
NETWORK = {IB: 12.5e9, ROCE: 10e9, ETHERNET: 1e9}
"""Bytes a second of one device, one way."""
MODEL = Gpt(36, 4096, 32)
"""7.5 B parameters, over 64 devices: four nodes of eight of each network."""
PIPE, DATA, TENSOR, MICRO, PARTS = 2, 4, 8, 4, 32
SPEEDS = {IB: "a100_80.holmes_ib", ROCE: "a100_80.holmes_roce"}
ORDERS = {
    "pipe-outermost": ("pipe", "data", "tensor"),
    "data-outermost": ("data", "pipe", "tensor"),
}


def speed(kind: str) -> float:
    """FLOP/s of a device that a run on such a network alone reaches."""
    return profile(SPEEDS[kind]).value("reached_flops")


def dealt(layers: int) -> Numbers:
    """Layers of the first of two stages by the floor rule and by the smallest slowest stage."""
    speeds = [speed(IB), speed(ROCE)]
    floor, least = floor_rule(layers, speeds), balance([1.0] * layers, speeds)
    slowest = [max(n / s for n, s in zip(own, speeds, strict=True)) for own in (floor, least)]
    return {"floor": floor[0], "least": least[0], "slower": slowest[0] / slowest[1]}


def groups(order: Sequence[str]) -> dict[str, list[set[str]]]:
    """Networks within each group of an axis, the devices of one network standing first.

    "embedding" joins the first and the last stage, which hold one table where it is tied.
    """
    sizes = {"pipe": PIPE, "data": DATA, "tensor": TENSOR}
    kinds = [IB] * (PIPE * DATA * TENSOR // 2) + [ROCE] * (PIPE * DATA * TENSOR // 2)
    places = list(itertools.product(*(range(sizes[axis]) for axis in order)))
    found: dict[str, list[set[str]]] = {}
    for axis in order:
        at = order.index(axis)
        own: dict[tuple[int, ...], set[str]] = {}
        for place, kind in zip(places, kinds, strict=True):
            own.setdefault(place[:at] + place[at + 1 :], set()).add(kind)
        found[axis] = list(own.values())
    found["embedding"] = found["pipe"]  # of two stages, the first and the last
    return found


def mixed(name: str) -> Numbers:
    """Groups of each axis whose devices have unlike networks."""
    found = groups(ORDERS[name])
    return {axis: sum(len(kinds) > 1 for kinds in own) for axis, own in found.items()}


def step(stages: Sequence[str], hop: str, gradients: str, layers: Sequence[int]) -> float:
    """Seconds of a step.

    (m - 1) max T_i + sum T_i of stages, each with its share of the hops that 1F1B waits for,
    2 (p - 1) / p a microbatch; then gradients and new parameters, 2 (d - 1) / d P / t p numbers.
    Each device of a tensor group sends its part of a hop.

    Args:
      stages: network of each stage, whose devices reach its speed.
      hop: network between stages.
      gradients: the slowest network of a group of `data`.
      layers: of each stage.
    """
    message = MODEL.tokens * MICRO * MODEL.width * HALF / TENSOR / NETWORK[hop]
    waits = 2 * (PIPE - 1) / PIPE * message
    work = MODEL.operations(MICRO) / MODEL.layers / TENSOR
    times = [n * work / speed(k) + waits for n, k in zip(layers, stages, strict=True)]
    sent = 2 * (DATA - 1) / DATA * MODEL.params / (TENSOR * PIPE) * HALF
    return (PARTS - 1) * max(times) + sum(times) + sent / NETWORK[gradients]


def rate(seconds: float) -> Numbers:
    """Seconds of a step, and TFLOP/s of a device."""
    work = MODEL.operations(PARTS * MICRO * DATA)
    return {"step": seconds, "rate": work / seconds / (PIPE * DATA * TENSOR) / 1e12}


def timed(name: str) -> Numbers:
    """A step on one network, on both with `pipe` outermost, or with mixed groups of `data`."""
    even = (MODEL.layers // 2,) * 2
    unlike = balance([1.0] * MODEL.layers, [speed(IB), speed(ROCE)])
    cases = {
        "ib": ((IB, IB), IB, IB, even),
        "roce": ((ROCE, ROCE), ROCE, ROCE, even),
        "holmes": ((IB, ROCE), ETHERNET, ROCE, unlike),
        "even": ((IB, ROCE), ETHERNET, ROCE, even),
        "mixed": ((ROCE, ROCE), ROCE, ETHERNET, even),
    }
    return rate(step(*cases[name]))


def crossing() -> Numbers:
    """Microbatches from which hops over Ethernet send more than gradients would."""
    hops = 2 * MICRO * MODEL.tokens * MODEL.width / TENSOR
    gradients = 2 * (DATA - 1) / DATA * MODEL.params / (TENSOR * PIPE)
    first = next(m for m in range(1, 100_000) if m * hops >= gradients)
    return {"parts": first, "off": first - -(-gradients // hops)}


TITLES = {
    "ib": "64 devices, InfiniBand",
    "roce": "64 devices, RoCE",
    "holmes": "half each, pipe outermost, stages by speed",
    "even": "half each, pipe outermost, even stages",
    "mixed": "half each, data across",
}
ARMS: dict[str, Arm] = {
    "30": closed("30 layers, 197:160", lambda: dealt(30)),
    "48": closed("48 layers, 197:160", lambda: dealt(48)),
    **{name: closed(f"groups, {name}", lambda n=name: mixed(n)) for name in ORDERS},
    **{name: closed(title, lambda n=name: timed(n)) for name, title in TITLES.items()},
    "crossing": closed("hops against gradients over Ethernet", crossing),
}
RECIPE = "released recipes"
CLAIMS = (
    Claim(
        "The floor rule gives the released 16 + 14 and 26 + 22 layers",
        "printed",
        ("30", "48"),
        "floor",
        source=RECIPE,
        figures=("16", "26"),
    ),
    Claim(
        "The smallest slowest stage gives 17 + 13 of 30",
        "near",
        ("30",),
        "least",
        17.0,
        source="ours",
    ),
    Claim("and 27 + 21 of 48", "near", ("48",), "least", 27.0, source="ours"),
    Claim(
        "With pipe outermost no group of data or tensor mixes networks",
        "near",
        ("pipe-outermost",),
        "data",
        0.0,
        source="the paper's idea",
    ),
    Claim(
        "With data outermost every group of data mixes them",
        "near",
        ("data-outermost",),
        "data",
        PIPE * TENSOR,
        source="the paper's idea",
    ),
    Claim(
        "Tied embeddings then join unlike networks",
        "near",
        ("pipe-outermost",),
        "embedding",
        DATA * TENSOR,
        source="the code",
    ),
    Claim(
        "A step lies between those of InfiniBand and RoCE",
        "ordered",
        ("ib", "holmes", "roce"),
        "step",
        source="the abstract: close to homogeneous RDMA",
    ),
    Claim(
        "With data across, a step takes longer",
        "times_at_least",
        ("mixed", "holmes"),
        "step",
        1.05,
        source="the abstract",
    ),
    Claim(
        "Stages by speed beat even ones",
        "lower",
        ("holmes", "even"),
        "step",
        source="the paper's idea",
    ),
    Claim(
        "Hops send less than gradients up to the rule's number of microbatches",
        "near",
        ("crossing",),
        "off",
        source="exact",
    ),
)

STUDY = Study(
    name="holmes",
    title="Clusters with unlike networks",
    source="arXiv 2312.03549",
    page="machines.md",
    arms=ARMS,
    measures={
        "floor": Measure("first stage, floor rule", form=".0f"),
        "least": Measure("first stage, smallest slowest", form=".0f"),
        "slower": Measure("floor rule's slowest stage", "lower", "times", ".3f"),
        "pipe": Measure("mixed groups of pipe", "lower", form=".0f"),
        "data": Measure("of data", "lower", form=".0f"),
        "tensor": Measure("of tensor", "lower", form=".0f"),
        "embedding": Measure("of tied embeddings", "lower", form=".0f"),
        "step": Measure("step", "lower", "s", ".3f"),
        "rate": Measure("of a device", "higher", "TFLOP/s", ".0f"),
        "parts": Measure("microbatches", form=".0f"),
        "off": Measure("off the rule", form=".0f"),
    },
    published=as_printed(CLAIMS),
    claims=CLAIMS,
    notes=(
        "networks of 12.5, 10 and 1 GB/s a device are ours; speeds of 197 and 160 TFLOP/s were "
        "recalled by a reader of the paper, and fit its recipes",
    ),
    absent=(
        Absent(
            "7.5 B parameters at about 187 TFLOP/s, against 112, 135 and 165 of others",
            "bars of a figure, measured on up to 96 A100",
        ),
        Absent("Choice of network cards", "the transport is that of XLA and NCCL"),
    ),
)
