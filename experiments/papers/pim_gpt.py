"""Products inside memory (PIM-GPT): writing one text is reading weights, and batches change that.

Source: npj Unconventional Computing 2024, arXiv 2310.09385 (v2). Its table of the device could
not be read: the profile is that of GDDR6 parts of this kind, and is named so.
"""

from __future__ import annotations

from experiments.study import Absent, Arm, Claim, Measure, Study, as_printed, closed
from experiments.study.declare import Numbers
from gam_jax.planning import profile

PIM, GPU = "pim.pim_gpt", "t4"
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


def pim_seconds(params: float, batch: int = 1, banks: float = 1) -> float:
    """Of one token each of a batch: one text after the other, each reads all weights.

    Args:
      params: of the model.
      batch: texts.
      banks: times as many as there are.
    """
    own = profile(PIM)
    rate = own.value("channels") * own.value("banks") * own.value("bank.bandwidth")
    return batch * HALF * params / (banks * rate)


def gpu_seconds(params: float, batch: int = 1) -> float:
    """Weights are read once for the batch; arithmetic is for all of it."""
    own = profile(GPU)
    return max(HALF * params / own.memory.bandwidth, 2 * batch * params / own.flops("float16"))


def crossing() -> float:
    """The batch from which the GPU is faster: the ratio of bandwidths.

    Below it the GPU reads for as long as the memory multiplies B times; its own arithmetic binds
    only at a larger batch, peak over bandwidth.
    """
    return profile(PIM).memory.bandwidth / profile(GPU).memory.bandwidth


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
        "banks": pim_seconds(params, banks=2) / pim,
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
