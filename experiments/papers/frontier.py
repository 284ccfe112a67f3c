"""Training on Frontier: recipes that fit, how degrees trade off, and utilisation predicted.

Source: arXiv 2312.12705: its abstract, and notes of its body, which could not be read. A "GPU" is
one of the two dies of an MI250X.
"""

from __future__ import annotations

import dataclasses
import functools

from experiments.papers.gpt import Gpt, Split, bubble, held_bytes, step_seconds
from experiments.study import Absent, Arm, Claim, Measure, Study, as_printed, closed
from experiments.study.declare import Numbers
from gam_jax.planning import Profile, profile

MODELS = {
    "22b": (Gpt(48, 6144, 48), "38.38", 73.5),
    "175b": (Gpt(96, 12288, 96), "36.14", 69.2),
    "1t": (Gpt(128, 25600, 128), "31.96", 61.2),
}
"""Percent of the peak as printed, and TFLOP/s of a die, recalled by a reader."""
RECIPES = {
    "22b": Split(tensor=2, pipe=4, data=16, parts=128),
    "175b": Split(tensor=4, pipe=16, data=16, parts=640),
    "1t": Split(tensor=8, pipe=64, data=6, parts=1600),
}
"""Of 22 B none is known: that one is ours."""
BASE = Split(tensor=4, pipe=16, data=16, parts=64)
"""Which the sweeps change in one degree."""


def gcd() -> Profile:
    """A die of an MI250X as the paper has it."""
    return profile("frontier_gcd.frontier")


def used(model: Gpt, split: Split, efficiency: float) -> float:
    """Percent of the peak, recomputed operations counted, as the paper does."""
    seconds = step_seconds(model, split, gcd(), efficiency)
    work = model.operations(split.parts * split.micro * split.data)
    return 100 * work / (split.devices * gcd().peak_flops * seconds)


@functools.cache
def fitted() -> float:
    """The part of the peak that products reach, so that 22 B comes out as printed."""
    model, printed, _ = MODELS["22b"]
    low, high = 0.01, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if used(model, RECIPES["22b"], middle) < float(printed):
            low = middle
        else:
            high = middle
    return low


def model(name: str) -> Numbers:
    """Percent of the peak by the recalled rate, and predicted; GB held, and the bubble."""
    own, printed, rate = MODELS[name]
    split = RECIPES[name]
    predicted = used(own, split, fitted())
    return {
        "share": 100 * rate * 1e12 / gcd().peak_flops,
        "predicted": predicted,
        "reached": 100 * fitted(),
        "error": 100 * (predicted / float(printed) - 1),
        "held": held_bytes(own, split) / 1e9,
        "bubble": 100 * bubble(split.pipe, split.parts),
    }


def refused() -> Numbers:
    """175 B at t = 4, p = 4 with Adam's state whole on each replica: GB, however many replicas."""
    held = (held_bytes(MODELS["175b"][0], Split(4, 4, d, zero=False)) for d in (1, 16, 256))
    return {"held": min(held) / 1e9}


def swept(**degrees: int) -> Numbers:
    """Percent of the peak of 175 B with other degrees than `BASE`."""
    split = dataclasses.replace(BASE, **degrees)
    return {"predicted": used(MODELS["175b"][0], split, fitted())}


TENSOR = (1, 2, 4, 8, 16)
SWEEPS: dict[str, dict[str, int]] = {
    **{f"t-{t}": {"tensor": t} for t in TENSOR},
    **{f"m-{m}": {"parts": m} for m in (16, 64, 256)},
    **{f"p-{p}": {"pipe": p} for p in (4, 8, 32)},
    **{f"mp-{p}": {"pipe": p, "parts": 4 * p} for p in (8, 16, 32)},
}
TOKENS = closed("1 T parameters, 20 T tokens", lambda: {"operations": 6 * 1e12 * 20e12})
ARMS: dict[str, Arm] = {
    "operations": TOKENS,
    **{n: closed(f"{n.upper()}, its recipe", lambda n=n: model(n)) for n in MODELS},
    "refused": closed("175B, t = p = 4, no ZeRO", refused),
    **{
        n: closed(f"175B, {', '.join(f'{k} {v}' for k, v in d.items())}", lambda d=d: swept(**d))
        for n, d in SWEEPS.items()
    },
}
FITS = 64.0


def _printed(text: str, arms: tuple[str, ...], measure: str, figures: tuple[str, ...], source: str):
    return Claim(text, "printed", arms, measure, source=source, figures=figures)


def _lower(text: str, arms: tuple[str, ...]) -> Claim:
    return Claim(text, "ordered", arms, "predicted", source="the paper's observations")


ABSTRACT = "the abstract"
CLAIMS = (
    _printed("120 million exaFLOP", ("operations",), "operations", ("1.2e26",), ABSTRACT),
    _printed(
        "38.38, 36.14 and 31.96 % are shares of 191.5 TFLOP/s, of one die",
        tuple(MODELS),
        "share",
        tuple(row[1] for row in MODELS.values()),
        ABSTRACT,
    ),
    _printed("Bubbles of both recipes", ("175b", "1t"), "bubble", ("2.3", "3.9"), "recipes"),
    Claim(
        "175B without ZeRO at t = p = 4 does not fit 64 GB",
        "at_least",
        ("refused",),
        "held",
        FITS,
        source="the paper's memory",
    ),
    Claim(
        "Both recipes fit, with ZeRO-1 and full checkpointing",
        "at_most",
        ("175b", "1t"),
        "held",
        FITS,
        source="recipes",
    ),
    _lower("Utilisation falls with t", tuple(f"t-{t}" for t in reversed(TENSOR))),
    Claim(
        "From t = 8 to 16, out of the node, it falls to less than 0.75",
        "times_at_most",
        ("t-16", "t-8"),
        "predicted",
        0.75,
        source="the paper's observations",
    ),
    _lower("It rises with m", ("m-16", "m-64", "m-256")),
    _lower("It falls with p at the same batch", ("p-32", "p-8", "p-4")),
    *(
        Claim(
            f"It is flat where m / p is the same, to 3 % ({other})",
            kind,
            (other, "mp-16"),
            "predicted",
            bound,
            source="the paper's observations",
        )
        for other in ("mp-8", "mp-32")
        for kind, bound in (("times_at_most", 1.03), ("times_at_least", 0.97))
    ),
    Claim(
        "22 B uses more of the peak than 175 B",
        "higher",
        ("22b", "175b"),
        "predicted",
        source=ABSTRACT,
    ),
    Claim("175 B uses more than 1 T", "higher", ("175b", "1t"), "predicted", source=ABSTRACT),
)

STUDY = Study(
    name="frontier",
    title="Training on Frontier",
    source="arXiv 2312.12705",
    page="machines.md",
    arms=ARMS,
    measures={
        "operations": Measure("operations", form=".1e"),
        "share": Measure("of the peak", "higher", "%", ".2f"),
        "predicted": Measure("predicted", "higher", "%", ".2f"),
        "reached": Measure("products reach, fitted on 22B", "", "%", ".1f"),
        "error": Measure("off the printed", "", "%", "+.1f"),
        "held": Measure("held by a die", "lower", "GB", ".1f"),
        "bubble": Measure("bubble", "lower", "%", ".1f"),
    },
    published=as_printed(CLAIMS),
    claims=CLAIMS,
    notes=(
        "one number is fitted, on 22 B: the part of the peak that products reach; its recipe and "
        "TFLOP/s of a die are not printed in what could be read",
    ),
    absent=(
        Absent(
            "Weak scaling of 100 %, strong scaling of 89 and 87 %",
            "measured on up to 3,072 dies",
        ),
    ),
)
