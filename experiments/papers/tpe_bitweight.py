"""Products of integers digit by digit (TPE bit-weight): how many digits are not zero.

Source: arXiv 2503.06342, and its official repository's README for the counts of digits.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.study import Absent, Arm, Claim, Measure, Study, as_printed, closed
from experiments.study.declare import Numbers
from gam_jax.ops.bitslice import booth_digits, cycles, digits

DEVIATIONS = (10, 20, 30, 40, 50)
K_128 = ("1.75", "2.10", "2.32", "2.48", "2.60")
"""Digits other than zero of int8 numbers drawn from N(0, sd), as printed for K = 128."""
SAVED = ("57.25",)
"""Percent, as printed for the 1.71 digits of sd = 10 and K = 32."""
EVERY = np.arange(-128, 128)


@functools.cache
def counts() -> tuple[np.ndarray, np.ndarray]:
    """Digits other than zero of all 256 numbers: by this coding, and by Booth's."""
    x = jnp.asarray(EVERY, jnp.int8)
    both = jax.jit(lambda x: [jnp.sum(code(x) != 0, -1) for code in (digits, booth_digits)])
    own, booth = both(x)
    return np.asarray(own), np.asarray(booth)


def chances(deviation: float) -> np.ndarray:
    """Of each int8 number, if N(0, sd) is rounded and clipped."""
    edges = np.concatenate([[-np.inf], EVERY[1:] - 0.5, [np.inf]]) / deviation
    below = np.array([0.5 * (1 + math.erf(edge / math.sqrt(2))) for edge in edges])
    return np.diff(below)


def numbers(deviation: float) -> Numbers:
    """Digits expected, by both codings, and percent of the cycles of all four that are saved."""
    weights = chances(deviation) if deviation else np.full(256, 1 / 256)
    own, booth = (float(weights @ count) for count in counts())
    return {"digits": own, "booth": booth, "saved": 100 * (1 - cycles(1, own))}


ARMS: dict[str, Arm] = {
    **{f"sd-{sd}": closed(f"N(0, {sd})", lambda sd=sd: numbers(sd)) for sd in DEVIATIONS},
    "even": closed("all 256 numbers alike", lambda: numbers(0)),
    "readme": closed("1.71 digits", lambda: {"saved": 100 * (1 - cycles(1, 1.71))}),
}
NORMAL = tuple(f"sd-{sd}" for sd in DEVIATIONS)
CLAIMS = (
    *(
        Claim(
            f"{figure} digits at sd {sd}, to 0.03",
            "near",
            (arm,),
            "digits",
            float(figure),
            0.03,
            "the official README, K = 128",
        )
        for arm, sd, figure in zip(NORMAL, DEVIATIONS, K_128, strict=True)
    ),
    Claim(
        "Booth's digits of numbers that are all alike number 3.00",
        "printed",
        ("even",),
        "booth",
        source="exact",
        figures=("3.00",),
    ),
    Claim(
        "1.71 digits save 57.25 % of the cycles",
        "printed",
        ("readme",),
        "saved",
        source="the official README",
        figures=SAVED,
    ),
)

STUDY = Study(
    name="tpe-bitweight",
    title="Products of integers, digit by digit",
    source="arXiv 2503.06342",
    page="machines.md",
    arms=ARMS,
    measures={
        "digits": Measure("digits", "lower", form=".2f"),
        "booth": Measure("Booth's digits", "lower", form=".2f"),
        "saved": Measure("cycles saved", "higher", "%", ".2f"),
    },
    published=as_printed(CLAIMS),
    claims=CLAIMS,
    notes=("ours is the expectation over all int8 numbers, the paper's a mean over drawn ones",),
    absent=(
        Absent(
            "1.27 to 1.56 times the area efficiency, 1.04 to 1.56 times the energy efficiency",
            "synthesised circuits of a 28 nm library; no figure of a program",
        ),
    ),
)
