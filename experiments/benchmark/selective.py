"""Time of the selective scan by method and chunk."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.timing import Quantity, Rows, medians, ratio
from gam_jax.ops.selective import selective_scan

TOKENS, SHORT, CHANNELS, NUMBERS = 8192, 512, 512, 16
CHUNKS = (4, 8, 16, 32)


def run(repeats: int, short: bool = False) -> Rows:
    """Forward, and forward with backward, of 8,192 tokens in 512 channels of 16 numbers; float32.

    Returns:
      A row a method and chunk: time of both, how many times as fast as
      `lax.associative_scan`, and temporary bytes a token (the compiler's own count).
    """
    tokens = SHORT if short else TOKENS
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (1, tokens, CHANNELS))
    dt = jax.nn.softplus(jax.random.normal(keys[1], x.shape) - 4)
    a = -jnp.tile(jnp.arange(1.0, NUMBERS + 1)[:, None], CHANNELS)
    b, c = (jax.random.normal(key, (1, tokens, NUMBERS)) for key in keys[2:])
    args = x, dt, a, b, c
    variants: dict[str, dict[str, Any]] = {
        "associative": {"method": "associative"},
        "recurrent": {"method": "recurrent"},
        **{f"chunks of {chunk}": {"chunk": chunk} for chunk in CHUNKS},
    }
    forward, both = {}, {}
    for name, options in variants.items():
        scan = functools.partial(selective_scan, **options)
        forward[name] = jax.jit(scan).lower(*args).compile()
        loss = jax.grad(lambda *args, scan=scan: jnp.sum(scan(*args)[0] ** 2), tuple(range(5)))
        both[name] = jax.jit(loss).lower(*args).compile()
    times = [
        medians({name: lambda f=f: f(*args) for name, f in compiled.items()}, repeats, warmup=1)
        for compiled in (forward, both)
    ]
    rows: Rows = {}
    for name in variants:
        own = [found[name] for found in times]
        speedups = (ratio(found["associative"], found[name]) for found in times)
        memory = getattr(both[name].memory_analysis(), "temp_size_in_bytes", float("nan"))
        rows[f"{name}, {tokens:,} tokens"] = {
            "forward": own[0],
            "both": own[1],
            **dict(zip(("times as fast, forward", "times as fast, both"), speedups, strict=True)),
            "temporary": Quantity.exactly(memory / tokens, "B/token"),
        }
    return rows
