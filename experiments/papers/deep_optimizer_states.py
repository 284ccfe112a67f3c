"""Optimizer state in the host's memory, updated by host and device in turn: what it can gain.

Source: Deep Optimizer States (arXiv 2410.21316), its released code and the two logs that come with
it. The model of time is derived here from the released schedule, see `sharding.offload`.
"""

from __future__ import annotations

import math

from experiments.study import Absent, Arm, Claim, Measure, Study, closed
from experiments.study.declare import Numbers
from sharding.offload import Rates, best_stride, simulate

PARAMETERS, GROUPS, STRIDE = 6.7e9, 130, 2
"""Of the 7 B model in the makers' log."""
BEFORE, AFTER = 3.94, 4.14
"""Seconds of the update in that log: by the host alone, and by host and device in turn."""
ITERATION, ITERATION_AFTER = 9.48, 6.8
"""Seconds of an iteration there."""
DEVICE = 7e10
"""Parameters a second that a device updates: 28 bytes each, at 2 TB/s."""
SIZE = PARAMETERS / GROUPS
LINKS = (16, 25, 64, 450)
"""GB/s, one way: PCIe 3 and 4 as they are reached, PCIe 5, a host and a GPU in one package."""
NEAREST = 1e-4
"""Relative, of the rate that explains a time."""


def rates_of(link: float) -> Rates:
    """The log's host, which is as long at updates as at rounding; only their sum is told."""
    return Rates(2 * PARAMETERS / BEFORE, 2 * PARAMETERS / BEFORE, DEVICE, link * 1e9)


def over(link: float) -> Numbers:
    """The update of all parameters over such a link."""
    rates = rates_of(link)
    alone, found = (simulate(GROUPS, k, SIZE, rates).seconds for k in (0, STRIDE))
    best = best_stride(GROUPS, SIZE, rates)
    best_gain = alone / simulate(GROUPS, best, SIZE, rates).seconds
    bound = best / (best - 1) if best else 1.0
    return {
        "alone": alone,
        "seconds": found,
        "gain": alone / found,
        "best": best,
        "best_gain": best_gain,
        "of_bound": best_gain / bound,
    }


def log() -> Numbers:
    """What the makers' log says, and the link with which the simulation takes as long."""
    low, high = 1.0, 1000.0
    while high / low > 1 + NEAREST:
        middle = math.sqrt(low * high)
        slower = simulate(GROUPS, STRIDE, SIZE, rates_of(middle)).seconds > AFTER
        low, high = (middle, high) if slower else (low, middle)
    return {"gain": BEFORE / AFTER, "iteration": ITERATION / ITERATION_AFTER, "link": high}


ARMS: dict[str, Arm] = {
    **{
        f"link-{link}": closed(f"a link of {link} GB/s", lambda link=link: over(link))
        for link in LINKS
    },
    "log": closed("the makers' log", log),
}
SIMULATED = tuple(name for name in ARMS if name != "log")

STUDY = Study(
    name="deep-optimizer-states",
    title="Optimizer state between host and device",
    source="arXiv 2410.21316",
    page="machines.md",
    arms=ARMS,
    measures={
        "alone": Measure("by the host alone", "lower", "s", ".2f"),
        "seconds": Measure("every second subgroup by the device", "lower", "s", ".2f"),
        "gain": Measure("times as fast", "higher", form=".3f"),
        "best": Measure("best stride", "", form=".0f"),
        "best_gain": Measure("times as fast with it", "higher", form=".3f"),
        "of_bound": Measure("of the bound k / (k - 1)", "higher", form=".3f"),
        "iteration": Measure("times as fast, an iteration", "higher", form=".3f"),
        "link": Measure("the link that explains the log", "", "GB/s", ".1f"),
    },
    claims=(
        Claim(
            "Every second subgroup on the device gains at most a factor of 2",
            "at_most",
            SIMULATED,
            "gain",
            2.0,
            source="derived from the released schedule",
        ),
        Claim(
            "No stride gains more than k / (k - 1)",
            "at_most",
            SIMULATED,
            "of_bound",
            1.0,
            source="derived from the released schedule",
        ),
        Claim(
            "A slow link makes the update slower than the host alone",
            "at_most",
            ("link-16",),
            "gain",
            1.0,
            source="derived from the released schedule",
        ),
        Claim(
            "So it does in the makers' own log",
            "at_most",
            ("log",),
            "gain",
            1.0,
            source="the makers' log of a 7 B model",
        ),
        Claim(
            "An iteration of that log is 1.39 times as fast, all of it by the backward pass",
            "near",
            ("log",),
            "iteration",
            1.39,
            0.005,
            source="the makers' log of a 7 B model",
        ),
        Claim(
            "A link as fast as a package's takes the update to nine tenths of the bound",
            "at_least",
            ("link-450",),
            "of_bound",
            0.9,
            source="ours",
        ),
    ),
    notes=(
        f"{PARAMETERS / 1e9:.1f} B parameters in {GROUPS} subgroups; the host takes {BEFORE} s for "
        "all of them, as in the log; one buffer on the device, flushed before it is filled again",
        "in that log the losses of the interleaved run are ln(50304) from the second iteration on: "
        "its times are those of a model that was destroyed (bits of float16 read as bfloat16)",
    ),
    absent=(
        Absent(
            "2.5 times faster iterations", "on GPUs with their own hosts; nothing is timed here"
        ),
    ),
)
