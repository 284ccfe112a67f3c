"""GPUs as dissected (Hopper): ratios of reached rates, and whether faster products help a decode.

Source: arXiv 2402.13499. Its figures are measured with operands that are all zero, on an A100
PCIe, an RTX 4090 and an H800 PCIe.
"""

from __future__ import annotations

from experiments.study import Absent, Arm, Claim, Measure, Study, closed
from experiments.study.declare import Numbers
from gam_jax.planning import Profile, profile

DEVICES = {"a100_pcie_40": "A100 PCIe", "rtx4090": "RTX 4090", "h800_pcie": "H800 PCIe"}
CORES = 114
"""Multiprocessors of the H800 PCIe."""
CYCLES = 128
"""Of one m64n256k16 product of a warp group, as measured."""
OPERATIONS = 2 * 64 * 256 * 16
BATCH, PROMPT, WEIGHT = 8, 128, 2
"""Texts, tokens of each prompt, bytes of a weight."""


def dissected(name: str) -> Profile:
    """A device with the paper's figures of it."""
    return profile(f"{name}.hopper_dissect")


def ratios(name: str) -> Numbers:
    """Sparse over dense products, int8 over float16; on Hopper, of its warp groups too."""
    own = dissected(name)
    dense = own.value("mma.float16")
    found = {
        "sparse": own.value("mma.float16_sparse") / dense,
        "int8": own.value("mma.int8") / dense,
    }
    if "wgmma.float16" in own.figures:
        group = own.value("wgmma.float16")
        found |= {"float8": own.value("wgmma.float8") / group, "group": group / dense}
    return found


def clocks() -> tuple[float, float, float]:
    """Of the H800: operations a clock in float16 and float8, bytes of memory a clock.

    The first follows from the measured cycles of one product; the last is what the second cache
    gives, over its measured ratio to memory.
    """
    own = dissected("h800_pcie")
    half = CORES * OPERATIONS / CYCLES
    eighth = half * own.value("wgmma.float8") / own.value("wgmma.float16")
    return half, eighth, own.value("l2.bandwidth") / own.value("l2.over_memory")


def cycles(tokens: int, operations: float, moved: float) -> float:
    """Cycles a parameter to put so many tokens through it: the longer of products and reading."""
    return max(2 * tokens / operations, WEIGHT / moved)


def faster(tokens: int) -> Numbers:
    """What products at the rate of float8 bring, the weights being read as before; the clock."""
    half, eighth, moved = clocks()
    clock = dissected("h800_pcie").value("wgmma.float16") / half
    return {
        "gain": cycles(tokens, half, moved) / cycles(tokens, eighth, moved),
        "clock": clock / 1e9,
    }


ARMS: dict[str, Arm] = {
    **{name: closed(title, lambda n=name: ratios(n)) for name, title in DEVICES.items()},
    "decode": closed(f"decode, batch {BATCH}", lambda: faster(BATCH)),
    "prefill": closed(f"prefill, {BATCH} x {PROMPT} tokens", lambda: faster(BATCH * PROMPT)),
}
TABLE = "ratios of the paper's table"


def _near(text: str, arms: tuple[str, ...], measure: str, value: float, room: float) -> Claim:
    return Claim(text, "near", arms, measure, value, room, TABLE)


STUDY = Study(
    name="hopper-dissect",
    title="Rates that GPUs reach",
    source="arXiv 2402.13499",
    page="machines.md",
    arms=ARMS,
    measures={
        "sparse": Measure("sparse / dense", form=".2f"),
        "int8": Measure("int8 / float16", form=".2f"),
        "float8": Measure("float8 / float16, warp groups", form=".2f"),
        "group": Measure("warp groups / warps", form=".2f"),
        "gain": Measure("faster with float8 products", "higher", form=".2f"),
        "clock": Measure("clock", "", "GHz", ".2f"),
    },
    claims=(
        _near(
            "Sparse products are twice as fast on A100 and RTX 4090",
            ("a100_pcie_40", "rtx4090"),
            "sparse",
            2.0,
            0.015,
        ),
        _near("On H800, by warps, only 1.46 times", ("h800_pcie",), "sparse", 1.46, 0.005),
        _near("int8 is twice as fast as float16", tuple(DEVICES), "int8", 2.0, 0.05),
        _near("Warp groups: float8 is 1.99 times float16", ("h800_pcie",), "float8", 1.99, 0.005),
        _near("Warp groups are 1.48 times as fast as warps", ("h800_pcie",), "group", 1.48, 0.006),
        Claim(
            "Decoding gains nothing from float8 products: it reads memory",
            "near",
            ("decode",),
            "gain",
            1.0,
            source="the paper's text",
        ),
        Claim(
            "Reading a prompt does",
            "at_least",
            ("prefill",),
            "gain",
            1.5,
            source="the paper's text: up to 2 times",
        ),
    ),
    notes=(
        "figures of operands that are all zero; with random ones the H800 meets its 350 W and "
        "slows down",
    ),
    absent=(
        Absent(
            "llama-3B decodes 679.45 tokens/s in float32 and 624.10 in bfloat16",
            "measured; its memory's bytes a second are not printed, only those a clock follow",
        ),
        Absent("DPX up to 13 times faster than emulated", "instructions of a chip, not of JAX"),
    ),
)
