"""The ways to compute a memory scan, forward and backward, side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from experiments.benchmark.timing import Rows, medians, ratio
from gam_jax.ops.norm import unit_norm
from gam_jax.ops.scan import METHODS, memory_scan

TOKENS, SHORT, HEADS, SIZE = 8192, 512, 8, 32
KINDS = {
    "decay a head": ("hebb", (HEADS,), False),
    "decay a channel": ("hebb", (HEADS, SIZE), False),
    "gated delta rule": ("delta", (HEADS,), True),
}


def run(repeats: int, short: bool = False) -> Rows:
    """8,192 tokens, 8 heads of 32 x 32 numbers, batch 1, float32; the methods take turns.

    The kernel takes part on a TPU alone: elsewhere it would be interpreted, or is refused.

    Returns:
      A row a kind of memory: time of each method, and those of the others over those of the
      chunked one.
    """
    methods = [name for name in METHODS if name != "pallas" or jax.default_backend() == "tpu"]
    tokens = SHORT if short else TOKENS
    rows: Rows = {}
    for name, (rule, sizes, strong) in KINDS.items():
        keys = jax.random.split(jax.random.key(0), 5)
        q, k, v = (jax.random.normal(key, (1, tokens, HEADS, SIZE)) for key in keys[:3])
        log_decay = -jax.nn.softplus(jax.random.normal(keys[3], (1, tokens, *sizes)) - 3)
        beta = jax.nn.sigmoid(jax.random.normal(keys[4], v.shape[:3])) if strong else None
        arrays = (q, unit_norm(k), v, log_decay, beta)
        calls = {method: functools.partial(_gradient(rule, method), *arrays) for method in methods}
        times = medians(calls, repeats, 1)
        ratios = {
            f"{method} over chunked": ratio(times[method], times["chunked"])
            for method in times
            if method != "chunked"
        }
        rows[f"{name}, {tokens:,} tokens"] = {**times, **ratios}
    return rows


def _gradient(rule: str, method: str) -> Callable[..., Any]:
    """By queries, keys, values and decays."""

    def loss(q: Array, k: Array, v: Array, log_decay: Array, beta: Array | None) -> Array:
        how = {"log_decay": log_decay, "beta": beta, "rule": rule, "method": method}
        return jnp.sum(jnp.square(memory_scan(q, k, v, **how)[0]))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
