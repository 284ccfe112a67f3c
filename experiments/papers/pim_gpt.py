"""Products inside memory (PIM-GPT): writing one text is reading weights, and batches change that.

Source: npj Unconventional Computing 2024, arXiv 2310.09385 (v2). Its table of the device could
not be read: the profile is that of GDDR6 parts of this kind, and is named so.
"""

from __future__ import annotations

from experiments.study import Absent, Arm, Claim, Measure, Study, as_printed, closed
from experiments.study.declare import Numbers

CHANNELS, BANKS = 8, 16
BANK_BYTES, BANK_FLOPS = 32e9, 32e9
"""A second, of one bank: 16 bfloat16 multiply-adds at 1 GHz read 32 bytes a cycle."""
T4_BYTES, T4_FLOPS = 320e9, 65e12
"""Of the compared GPU, by its maker (NVIDIA T4)."""
HALF = 2
MODELS = {
    "gpt2-small": (12, 768, 124e6),
    "gpt2-xl": (48, 1600, 1.56e9),
    "gpt3-xl": (24, 2048, 1.3e9),
}
"""Layers, width, parameters."""
CONTEXT = 512


def operations(name: str, context: int) -> float:
    """Of one token, by parameter: 2 for each weight, and 4 D T a layer for attention."""
    layers, width, params = MODELS[name]
    return 2 + 4 * width * context * layers / params


def pim_seconds(params: float, batch: int = 1, banks: int = CHANNELS * BANKS) -> float:
    """Of one token each of a batch: one text after the other, each reads all weights."""
    return batch * HALF * params / (banks * BANK_BYTES)


def gpu_seconds(params: float, batch: int = 1) -> float:
    """Weights are read once for the batch; arithmetic is for all of it."""
    return max(HALF * params / T4_BYTES, 2 * batch * params / T4_FLOPS)


def crossing() -> float:
    """The batch from which the GPU is faster: the ratio of bandwidths.

    Below it the GPU reads for as long as the memory multiplies B times; its own arithmetic binds
    only at a larger batch, peak over bandwidth.
    """
    return CHANNELS * BANKS * BANK_BYTES / T4_BYTES


def model(name: str) -> Numbers:
    """Milliseconds of a token, by the memory and by the GPU at its roofline."""
    params = MODELS[name][2]
    pim, gpu = pim_seconds(params), gpu_seconds(params)
    return {
        "pim": 1e3 * pim,
        "gpu": 1e3 * gpu,
        "faster": gpu / pim,
        "operations": operations(name, CONTEXT),
        "linear": pim_seconds(2 * params) / pim,
        "banks": pim_seconds(params, banks=2 * CHANNELS * BANKS) / pim,
    }


def searched() -> Numbers:
    """The crossing by trying batches, and by the closed form."""
    params = MODELS["gpt3-xl"][2]
    first = next(b for b in range(1, 10_000) if gpu_seconds(params, b) < pim_seconds(params, b))
    return {"batch": first, "closed": crossing(), "off": first - (crossing() // 1 + 1)}


ARMS: dict[str, Arm] = {
    **{name: closed(name, lambda n=name: model(n)) for name in MODELS},
    "crossing": closed("batch from which the GPU wins", searched),
}
NAMES = tuple(MODELS)
CLAIMS = (
    Claim(
        f"GPT-3 XL takes 2.1 operations a parameter (here at a context of {CONTEXT})",
        "printed",
        ("gpt3-xl",),
        "operations",
        source="the paper's introduction",
        figures=("2.1",),
    ),
    Claim("Twice the bytes take twice the time", "near", NAMES, "linear", 2.0, source="exact"),
    Claim("Twice the banks take half of it", "near", NAMES, "banks", 0.5, source="exact"),
    Claim(
        "The batch from which the GPU wins is that of the closed form",
        "near",
        ("crossing",),
        "off",
        source="exact",
    ),
    Claim(
        "Bandwidth alone gives 13 times; the rest of the printed 41 is a GPU below its roofline",
        "near",
        NAMES,
        "faster",
        13.0,
        0.5,
        "ours, of the profile",
    ),
)

STUDY = Study(
    name="pim-gpt",
    title="Products inside memory",
    source="arXiv 2310.09385",
    page="machines.md",
    arms=ARMS,
    measures={
        "pim": Measure("a token in memory", "lower", "ms", ".3f"),
        "gpu": Measure("on a T4 at its roofline", "lower", "ms", ".3f"),
        "faster": Measure("times faster", "higher", form=".1f"),
        "operations": Measure("operations a parameter", form=".2f"),
        "linear": Measure("time of twice the bytes", form=".2f"),
        "banks": Measure("time with twice the banks", form=".2f"),
        "batch": Measure("batch", form=".0f"),
        "closed": Measure("closed form", form=".1f"),
        "off": Measure("off it", form=".0f"),
    },
    published=as_printed(CLAIMS),
    claims=CLAIMS,
    notes=(
        "8 channels of 16 banks at 32 GB/s each are figures of GDDR6 parts of this kind, not the "
        "paper's; a T4 at its roofline is what its maker says",
    ),
    absent=(
        Absent(
            "41 to 137 times as fast as a GPU, 631 to 1,074 as a CPU; 123 to 383 and 320 to 602 "
            "times the energy efficiency (v2)",
            "simulated by the authors, beside measured devices that are not here",
        ),
    ),
)
