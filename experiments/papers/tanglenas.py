"""Sizes in one another (TangleNAS): one pass for all, and what a wide norm breaks.

Source: arXiv 2312.10440. Its spaces of images and its table of 6,561 nets are not here; the
identities are, on feed-forward layers.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.study import Absent, Arm, Claim, Measure, Setting, Study
from experiments.study.declare import Numbers
from gam_jax import units
from gam_jax.layers import MLP, LayerNorm, Mixed, Nested
from gam_jax.ops import choices
from gam_jax.params import abstract_params, init_params

SIZES = (8, 16, 24, 32)
WIDTH = 16


def superposed(setting: Setting, seed: int) -> Numbers:
    """Differences to the sum of all sizes, and of a sure choice to that size alone, in float64."""
    layer = Nested(MLP(hidden=SIZES[-1]), "hidden", SIZES, "softmax", width=WIDTH)
    plain = init_params(layer.table(), jax.random.key(0))
    summed, sure = 0.0, 0.0
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: np.asarray(p, np.float64), plain)
        own = {name: x for name, x in params.items() if name != choices.ARCHITECTURE}
        x = jax.random.normal(jax.random.key(1), (2, 3, WIDTH), jnp.float64)
        alone = []
        for size in SIZES:
            kept = units.keep(own, layer.own, np.arange(size))
            alone.append(np.asarray(layer.inner.with_units("hidden", size)(kept, x)[0]))
        drawn = np.random.default_rng(0).normal(size=len(SIZES))
        for logits in (drawn, *(1e4 * np.eye(len(SIZES)))):
            given = {**own, choices.ARCHITECTURE: {"logits": logits}}
            w = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
            want = sum(a * y for a, y in zip(w, alone, strict=True))
            off = float(np.max(np.abs(np.asarray(layer(given, x)[0]) - want)))
            if logits is drawn:
                summed = off
            else:
                sure = max(sure, off)
    return {"summed": summed, "sure": sure}


def norms(setting: Setting, seed: int) -> Numbers:
    """A norm over all channels, of which half are 0, beside that of the half alone."""
    x = jax.random.normal(jax.random.key(0), (4, WIDTH))
    half = x.at[:, WIDTH // 2 :].set(0.0)

    def normed(x: Any) -> Any:
        layer = LayerNorm(width=x.shape[-1])
        return layer(init_params(layer.table(), jax.random.key(0)), x[None])[0][0]

    own = normed(x[:, : WIDTH // 2])
    return {"wide_norm": float(jnp.max(jnp.abs(normed(half)[:, : WIDTH // 2] - own)))}


def work(nested: bool, setting: Setting, seed: int) -> Numbers:
    """Operations of a pass with 2 and with 8 sizes of one largest layer."""
    found = []
    for count in (2, 8):
        sizes = tuple(32 * (i + 1) * 8 // count for i in range(count))
        layer: Any
        if nested:
            layer = Nested(MLP(hidden=sizes[-1]), "hidden", sizes, "softmax", width=64)
        else:
            layer = Mixed(tuple(MLP(hidden=size) for size in sizes), width=64)
        x = jax.ShapeDtypeStruct((4, 64, 64), jnp.float32)
        program = jax.jit(lambda p, x, layer=layer: layer(p, x)[0])
        told: Any = program.lower(abstract_params(layer.table()), x).compile().cost_analysis()
        found.append(float(told["flops"]))
    return {"operations": found[1], "growth": found[1] / found[0]}


STUDY = Study(
    name="tanglenas",
    title="Sizes in one another",
    source="arXiv 2312.10440",
    page="mixed.md",
    arms={
        "identities": Arm("identities", numbers=superposed, exact=True),
        "norms": Arm("a norm of all channels", numbers=norms, exact=True),
        "nested": Arm("sizes in one", numbers=functools.partial(work, True), exact=True),
        "mixed": Arm("a layer for each", numbers=functools.partial(work, False), exact=True),
    },
    measures={
        "summed": Measure("difference to the sum of all sizes", "lower", form=".2g"),
        "sure": Measure("of a sure choice to that size", "lower", form=".2g"),
        "wide_norm": Measure("of a norm of all channels to one of half", "lower", form=".2g"),
        "operations": Measure("operations, 8 sizes", "lower", form=",.0f"),
        "growth": Measure("times those of 2 sizes", "lower", form=".3f"),
    },
    claims=(
        Claim(
            "Weighed units are the sum of all sizes",
            "at_most",
            ("identities",),
            "summed",
            1e-12,
            source="section 3",
        ),
        Claim(
            "A sure choice is that size alone",
            "at_most",
            ("identities",),
            "sure",
            1e-12,
            source="derived",
        ),
        Claim(
            "A norm over all channels is not that of the narrower net: widths are not nested here",
            "at_least",
            ("norms",),
            "wide_norm",
            0.1,
            source="derived: the released code norms so",
        ),
        Claim(
            "Operations of a pass do not depend on how many sizes there are",
            "at_most",
            ("nested",),
            "growth",
            1.01,
            source="abstract",
        ),
        Claim("those of a mixture do", "at_least", ("mixed",), "growth", 2.0, source="abstract"),
    ),
    absent=(
        Absent(
            "84.41 % at channels 32, 64, 128, 128 and kernels 3, 7, 5, 7",
            "a table of 6,561 nets on CIFAR-10, which is not here",
        ),
        Absent("Search against two-stage search at equal budget", "not asked yet"),
    ),
)
