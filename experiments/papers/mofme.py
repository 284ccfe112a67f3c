"""Mixtures of modulated experts (MoFME) beside mixtures of feed-forwards: what they save.

Source: "MoFME" (arXiv 2312.16610); its abstract says 72 % of parameters and 39 % of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.study import Arm, Claim, Measure, Setting, Study
from experiments.study.declare import CPU, SHORT
from gam_jax.layers import MLP, Layer, MoE, MoFME
from gam_jax.params import count_params, init_params

WIDTH = 384
TOKENS = {SHORT: 64, CPU: 1024}
SIZES = ((4, 2), (4, 4), (8, 2), (8, 8), (16, 2), (16, 16), (64, 2))
"""(experts, chosen of a token). Where all are chosen, both do what the paper's code does: it
computes every expert for every token."""
LARGEST = (64, 2)
PUBLISHED_PARAMETERS, PUBLISHED_TIME = 72, 39
"""Percent less than a conventional mixture: the abstract of arXiv 2312.16610."""
SOURCE = "arXiv 2312.16610, abstract"


def layers_of(experts: int, chosen: int) -> tuple[MoE, MoFME]:
    """The conventional mixture, each expert an MLP of 4 D hidden units, and MoFME."""
    mixture = MoE(width=WIDTH, experts=experts, chosen=chosen, ffn=MLP())
    return mixture, MoFME(width=WIDTH, experts=experts, chosen=chosen)


def flops(layer: MoE | MoFME) -> int:
    """Operations of a token's matrix products, forward."""
    square, score = 2 * WIDTH**2, 2 * WIDTH
    if isinstance(layer, MoFME):
        return (2 + 2 * layer.chosen + 8) * square + layer.experts * score
    return 8 * layer.chosen * square + layer.experts * score


def numbers(layer: MoE | MoFME) -> dict[str, float]:
    """Parameters; millions of operations of a token; of MoFME, percent saved of both."""
    parameters, work = count_params(layer.table()), flops(layer)
    found = {"parameters": parameters, "operations": work / 1e6}
    if isinstance(layer, MoFME):
        mixture, _ = layers_of(layer.experts, layer.chosen)
        found["parameters_saved"] = 100 * (1 - parameters / count_params(mixture.table()))
        found["operations_saved"] = 100 * (1 - work / flops(mixture))
    return found


def calls(layer: Layer, setting: Setting) -> dict[str, Callable[[], Any]]:
    """The layer on random tokens, compiled: forward, and forward with backward."""
    x = jax.random.normal(jax.random.key(0), (1, TOKENS[setting.scale], WIDTH))
    params = init_params(layer.table(), jax.random.key(1))

    def forward(params: Any, x: Any) -> Any:
        return layer(params, x)[0]

    def both(params: Any, x: Any) -> Any:
        return jax.grad(lambda p, x: jnp.sum(jnp.square(forward(p, x))), argnums=(0, 1))(params, x)

    compiled = {f.__name__: jax.jit(f).lower(params, x).compile() for f in (forward, both)}
    return {name: lambda f=f: f(params, x) for name, f in compiled.items()}


def arm_name(kind: str, experts: int, chosen: int) -> str:
    """As "mofme_16_2"."""
    return f"{kind}_{experts}_{chosen}"


def _arms() -> dict[str, Arm]:
    found = {}
    for experts, chosen in SIZES:
        pair = dict(zip(("mixture", "mofme"), layers_of(experts, chosen), strict=True))
        for kind, layer in pair.items():
            title = "MoFME" if kind == "mofme" else "mixture"
            found[arm_name(kind, experts, chosen)] = Arm(
                f"{title}, {experts} experts, {chosen} chosen",
                numbers=lambda setting, seed, layer=layer: numbers(layer),
                timed=lambda setting, layer=layer: calls(layer, setting),
                exact=True,
            )
    return found


STUDY = Study(
    name="mofme",
    title="Many experts for little more than one",
    source="arXiv 2312.16610",
    page="mofme.md",
    arms=_arms(),
    measures={
        "parameters": Measure("parameters", "lower", form=",.0f"),
        "parameters_saved": Measure("parameters saved", "higher", "%", ".1f"),
        "operations": Measure("operations", "lower", "M a token", ".2f"),
        "operations_saved": Measure("operations saved", "higher", "%", ".1f"),
        "forward": Measure("forward", "lower", "s", ".5f"),
        "both": Measure("forward and backward", "lower", "s", ".5f"),
    },
    claims=(
        Claim(
            f"MoFME saves {PUBLISHED_PARAMETERS} % of the parameters, at its 4, 8 or 16 experts",
            "at_least",
            tuple(arm_name("mofme", e, k) for e, k in SIZES if (e, k) != LARGEST),
            "parameters_saved",
            PUBLISHED_PARAMETERS,
            source=SOURCE,
        ),
        Claim(
            f"MoFME saves {PUBLISHED_PARAMETERS} % of the parameters, at {LARGEST[0]} experts",
            "at_least",
            (arm_name("mofme", *LARGEST),),
            "parameters_saved",
            PUBLISHED_PARAMETERS,
            source="ours",
        ),
        *(
            Claim(
                f"MoFME takes {PUBLISHED_TIME} % less time forward, {e} experts, {k} chosen",
                "times_at_most",
                (arm_name("mofme", e, k), arm_name("mixture", e, k)),
                "forward",
                1 - PUBLISHED_TIME / 100,
                source=SOURCE,
            )
            for e, k in SIZES
        ),
    ),
    notes=(
        f"{TOKENS[CPU]:,} tokens of width {WIDTH}, as in the paper's code; both compute a token's "
        f"chosen experts alone, and take turns",
    ),
)
