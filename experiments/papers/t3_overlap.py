"""A product and its collective at the same time (T3): when it pays, and by how much at most.

Source: arXiv 2401.16677 for the ideal that its hardware comes near; Wang et al. (ASPLOS 2023) for
steps of a ring, which a program can take. Bytes and rates are those of layers named in each arm.
"""

from __future__ import annotations

from experiments.study import Absent, Arm, Claim, Measure, Study, closed
from experiments.study.declare import Numbers
from gam_jax.planning.overlap import Operation, decomposed, ideal, list_schedule, serial

RATE, LINK = 200e12, 150e9
"""Operations and bytes a second of a device: round figures of ours."""
PENALTY = 0.1
"""By what part a product cut into steps is slower."""


def steps_of(product: float, collective: float, devices: int) -> list[Operation]:
    """An all-gather and a product in N steps: each block is multiplied while it is sent on."""
    found = [Operation("product-0", "compute", product / devices)]
    before: tuple[str, ...] = ()
    for step in range(1, devices):
        found.append(Operation(f"send-{step}", "network", collective / (devices - 1), before))
        before = (f"send-{step}",)
        found.append(Operation(f"product-{step}", "compute", product / devices, before))
    return found


def layer(width: int, rows: int, devices: int, penalty: float = PENALTY) -> Numbers:
    """The second product of a feed-forward of 4 D units, and the reduce-scatter after it."""
    product = 2 * rows * 4 * width * width / devices / RATE
    collective = 2 * rows * width * (devices - 1) / devices / LINK
    one, steps = serial(product, collective), decomposed(product, collective, devices, penalty)
    best = ideal(product, collective, devices)
    scheduled = list_schedule(steps_of(product * (1 + penalty), collective, devices)).seconds
    return {
        "serial": 1e3 * one,
        "decomposed": 1e3 * steps,
        "ideal": 1e3 * best,
        "sent": 100 * collective / one,
        "faster": 100 * (one / steps - 1),
        "at_most": 100 * (one / best - 1),
        "off": 100 * (scheduled / steps - 1),
    }


ARMS: dict[str, Arm] = {
    "mega-gpt-2-8": closed("width 3,072, 8 devices", lambda: layer(3072, 16_384, 8)),
    "t-nlg-8": closed("width 4,256, 8 devices", lambda: layer(4256, 8192, 8)),
    "t-nlg-16": closed("width 4,256, 16 devices", lambda: layer(4256, 8192, 16)),
    "palm-32": closed("width 18,432, 32 devices", lambda: layer(18_432, 4096, 32)),
    "small": closed(
        "width 512, 2 devices, products half as fast", lambda: layer(512, 4096, 2, 1.0)
    ),
}

STUDY = Study(
    name="t3-overlap",
    title="A product and its collective at once",
    source="arXiv 2401.16677",
    page="machines.md",
    arms=ARMS,
    measures={
        "serial": Measure("one after the other", "lower", "ms", ".3f"),
        "decomposed": Measure("in steps of a ring", "lower", "ms", ".3f"),
        "ideal": Measure("ideal", "lower", "ms", ".3f"),
        "sent": Measure("of the time is sending", "", "%", ".1f"),
        "faster": Measure("faster in steps", "higher", "%", "+.1f"),
        "at_most": Measure("ideal, faster by", "higher", "%", "+.1f"),
        "off": Measure("a schedule of the steps, off the formula", "", "%", ".3f"),
    },
    claims=(
        Claim(
            "Scheduled step by step, it takes t_c + (N - 1) max(t_c, t_p)",
            "near",
            tuple(ARMS),
            "off",
            0.0,
            1e-6,
            "Wang et al.",
        ),
        Claim(
            "Nothing is more than twice as fast: the longer of both remains",
            "at_most",
            tuple(ARMS),
            "at_most",
            100.0,
            source="exact",
        ),
        Claim(
            "Where products in steps lose more than there is to hide, steps are slower",
            "at_most",
            ("small",),
            "faster",
            0.0,
            source="the rule",
        ),
    ),
    notes=(f"{RATE:g} operations and {LINK:g} bytes a second; products in steps are 10 % slower",),
    absent=(
        Absent(
            "Sublayers 30 % faster (geometric mean), at most 47 %; 22 % less data moved",
            "from the authors' simulator of GPUs with memory that adds, which is not public",
        ),
    ),
)
