"""GPU cores taken apart (NVIDIA cores): what dependences cost, and how a model's errors are told.

Source: arXiv 2503.20481 and its MICRO 2025 version. Its core is no part of this project; its rule
is: a mean error alone hides the worst case.
"""

from __future__ import annotations

from experiments.papers.gemm_ada import here
from experiments.study import Absent, Arm, Claim, Measure, Setting, Study, as_printed, closed
from experiments.study.declare import Numbers
from gam_jax.planning import profile

COUNTERS, COUNTER_BITS, STALL_BITS, YIELD_BITS = 6, 6, 4, 1
WARPS, REGISTERS = 48, 65_536 * 32
"""Of a multiprocessor of this generation: warps, and bits of its registers."""
SCOREBOARD = 2324
"""Bits of a warp, as printed, for 63 readers of a register."""


def bits() -> Numbers:
    """Of a warp's control bits, and percent of the registers; the same of a scoreboard."""
    control = COUNTERS * COUNTER_BITS + STALL_BITS + YIELD_BITS
    return {
        "bits": control,
        "share": 100 * control * WARPS / REGISTERS,
        "scoreboard": 100 * SCOREBOARD * WARPS / REGISTERS,
    }


def machine() -> Numbers:
    """The RTX A6000 by its maker: operations a byte where products and memory take as long."""
    own = profile("rtx_a6000")
    return {"ridge": own.flops("float32") / own.bandwidth, "cores": own.value("cores")}


def told(setting: Setting, seed: int) -> Numbers:
    """The three errors of our predictions of products, on shapes that were not fitted."""
    found = here(setting.scale, seed)["ours"]
    return {
        "mape": 100 * found.mean,
        "ninetieth": 100 * found.ninetieth,
        "worst": 100 * found.worst,
    }


ARMS = {
    "bits": closed("control bits", bits),
    "machine": closed("RTX A6000", machine),
    "here": Arm("our products, on this machine", numbers=told),
}
CLAIMS = (
    Claim(
        "A warp has 6 x 6 + 4 + 1 = 41 control bits",
        "printed",
        ("bits",),
        "bits",
        source="the paper's text",
        figures=("41",),
    ),
    Claim(
        "They are 0.09 % of the registers",
        "printed",
        ("bits",),
        "share",
        source="the paper's text",
        figures=("0.09",),
    ),
    Claim(
        "Our mean error is within the simulator's 13.45 %, on other programs",
        "at_most",
        ("here",),
        "mape",
        13.45,
        source="MICRO 2025: RTX A6000",
    ),
    Claim(
        "Our worst error is within the simulator's 62 %, on other programs",
        "at_most",
        ("here",),
        "worst",
        62.0,
        source="MICRO 2025",
    ),
)

STUDY = Study(
    name="nvidia-cores",
    title="How errors of a model are told",
    source="arXiv 2503.20481",
    page="machines.md",
    arms=ARMS,
    measures={
        "bits": Measure("bits of a warp", "lower", form=".0f"),
        "share": Measure("of the registers", "lower", "%", ".2f"),
        "scoreboard": Measure("a scoreboard's", "lower", "%", ".2f"),
        "ridge": Measure("operations a byte", form=".1f"),
        "cores": Measure("multiprocessors", form=".0f"),
        "mape": Measure("mean error", "lower", "%", ".1f"),
        "ninetieth": Measure("nine of ten within", "lower", "%", ".1f"),
        "worst": Measure("worst", "lower", "%", ".1f"),
    },
    published=as_printed(CLAIMS),
    claims=CLAIMS,
    notes=("our errors: products of 200 random shapes, each predicted from other shapes",),
    absent=(
        Absent(
            "A scoreboard of 2,324 bits a warp is 2.28 % of the registers",
            "48 warps give 5.32 %: what it is a share of could not be read",
        ),
        Absent(
            "Mean error of 13.45 % on RTX A6000, 13.24 % on RTX 3080, worst 62 against 513 %",
            "from a simulator of cores beside those GPUs",
        ),
    ),
)
