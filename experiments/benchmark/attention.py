"""Time and memory of attention in blocks, beside all scores at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from experiments.benchmark.timing import Quantity, Rows, medians
from gam_jax.ops.attention import attend_tokens
from gam_jax.ops.tiles import Rule

HEADS, SIZE = 4, 64
TOKENS = (256, 1024, 4096, 16384)
WINDOW = 256
MOST_AT_ONCE = 4096
"""Tokens beyond which all scores at once are compiled, not run: they take 13 GB at 16,384."""


def at_once(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention that holds every score."""
    scores = jnp.einsum("bthk,bshk->bhts", q, k) * SIZE**-0.5
    scores = jnp.where(jnp.tri(q.shape[1], dtype=bool), scores, -jnp.inf)
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v)


WAYS = {
    "at once": at_once,
    "blocks": lambda *arrays: attend_tokens(Rule(SIZE**-0.5), *arrays)[0],
    "window": lambda *arrays: attend_tokens(Rule(SIZE**-0.5, window=WINDOW, block=WINDOW), *arrays)[
        0
    ],
}


def run(repeats: int, short: bool = False) -> Rows:
    """Loss and gradients of one row, 4 heads of 64, float32; the window has 256 tokens.

    Returns:
      A row a length: time of each way, and temporary bytes a token (the compiler's count).
    """
    rows: Rows = {}
    for tokens in TOKENS[:1] if short else TOKENS:
        arrays = [
            jax.random.normal(key, (1, tokens, HEADS, SIZE))
            for key in jax.random.split(jax.random.key(0), 3)
        ]
        compiled = {}
        for name, way in WAYS.items():
            loss = jax.value_and_grad(lambda *a, way=way: jnp.sum(way(*a)), argnums=(0, 1, 2))
            compiled[name] = jax.jit(loss).lower(*arrays).compile()
        calls = {
            name: lambda step=step, arrays=arrays: step(*arrays)
            for name, step in compiled.items()
            if name != "at once" or tokens <= MOST_AT_ONCE
        }
        row = rows[f"{tokens:,} tokens"] = medians(calls, repeats, warmup=1)
        for name, step in compiled.items():
            needed = step.memory_analysis().temp_size_in_bytes / tokens
            row[f"{name}, temporary"] = Quantity.exactly(needed, "B/token")
    return rows
