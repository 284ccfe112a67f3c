"""Mixtures of modulated experts beside mixtures of feed-forwards: parameters, work and time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.timing import Quantity, Rows, medians
from gam_jax.layers import MLP, Layer, MoE, MoFME
from gam_jax.params import count_params, init_params

WIDTH, TOKENS = 384, 1024
SIZES = ((4, 2), (8, 2), (16, 2), (64, 2), (4, 4), (8, 8), (16, 16))
SHORT = ((4, 2), (4, 4))
PUBLISHED_PARAMETERS, PUBLISHED_TIME = 72, 39
"""Percent less than a conventional mixture: the abstract of arXiv 2312.16610."""


def run(repeats: int, short: bool = False) -> Rows:
    """Forward, and forward with backward, of 1,024 tokens of width 384, as in the paper's code.

    Each expert of the conventional mixture is an MLP of 4 D hidden units. Both compute a token's
    chosen experts alone. Rows where all are chosen do what the paper's code does: it computes
    every expert for every token.

    Returns:
      A row a number of experts and chosen: of both kinds parameters, operations of a token
      (matrix products, forward) and seconds; percent saved, beside what was published.
    """
    sizes = SHORT if short else SIZES
    return {f"{e} experts, {k} chosen": _row(e, k, repeats) for e, k in sizes}


def flops(layer: MoE | MoFME) -> int:
    """Operations of a token's matrix products, forward."""
    square, score = 2 * WIDTH**2, 2 * WIDTH
    if isinstance(layer, MoFME):
        return (2 + 2 * layer.chosen + 8) * square + layer.experts * score
    return 8 * layer.chosen * square + layer.experts * score


def _row(experts: int, chosen: int, repeats: int) -> dict[str, Quantity]:
    layers: dict[str, MoE | MoFME] = {
        "mixture": MoE(width=WIDTH, experts=experts, chosen=chosen, ffn=MLP()),
        "MoFME": MoFME(width=WIDTH, experts=experts, chosen=chosen),
    }
    x = jax.random.normal(jax.random.key(0), (1, TOKENS, WIDTH))
    calls: dict[str, Any] = {}
    for name, layer in layers.items():
        params = init_params(layer.table(), jax.random.key(1))
        for kind, f in {"forward": _forward(layer), "both": _both(layer)}.items():
            compiled = jax.jit(f).lower(params, x).compile()
            calls[f"{name} {kind}"] = lambda f=compiled, params=params: f(params, x)
    times = medians(calls, repeats)
    counts = {name: count_params(layer.table()) for name, layer in layers.items()}
    work = {name: flops(layer) for name, layer in layers.items()}
    row = {f"{name} parameters": Quantity.exactly(count) for name, count in counts.items()}
    row |= {
        "parameters saved": _saved(counts),
        "published parameters saved": Quantity.exactly(PUBLISHED_PARAMETERS, "%"),
    }
    row |= {f"{name} operations": Quantity.exactly(n / 1e6, "M/token") for name, n in work.items()}
    row |= {"operations saved": _saved(work), **times}
    for kind in ("forward", "both"):
        found = {name: times[f"{name} {kind}"].median for name in layers}
        row[f"time saved {kind}"] = _saved(found)
    return row | {"published time saved forward": Quantity.exactly(PUBLISHED_TIME, "%")}


def _saved(found: dict[str, Any]) -> Quantity:
    return Quantity.exactly(100 * (1 - found["MoFME"] / found["mixture"]), "%")


def _forward(layer: Layer) -> Any:
    return lambda params, x: layer(params, x)[0]


def _both(layer: Layer) -> Any:
    return jax.grad(lambda params, x: jnp.sum(jnp.square(layer(params, x)[0])), argnums=(0, 1))
