"""Time and memory of one block by the length of the sequence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.timing import medians
from gam_jax.layers import GAM, Block, Chunked, Layer
from gam_jax.params import init_params

LENGTHS = (256, 1024, 4096, 16_384, 65_536, 131_072)
WIDTH = 256


def run(repeats: int) -> dict[str, Any]:
    """Forward and backward of one GAM block (width and slots 256), batch 1, float32.

    Returns:
      For the block taken whole and in chunks of 4,096 tokens, a row a length: seconds,
      microseconds and temporary bytes per token (the compiler's own count); and the largest over
      the smallest time per token from 4,096 tokens up.
    """
    block = Block(GAM(slots=WIDTH), width=WIDTH)
    result: dict[str, Any] = {}
    for name, layer in (("whole", block), ("chunked", Chunked(block))):
        rows = _rows(layer, repeats)
        long = [row["microseconds_per_token"] for row in rows if row["tokens"] >= 4096]
        result[name] = rows
        result[f"{name}_spread_from_4096"] = max(long) / min(long)
    return result


def _rows(block: Layer, repeats: int) -> list[dict[str, float]]:
    params = init_params(block.table(), jax.random.key(0))
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.square(block(p, x)[0])), argnums=(0, 1)))
    rows = []
    for tokens in LENGTHS:
        x = jax.random.normal(jax.random.key(1), (1, tokens, WIDTH))
        compiled = gradient.lower(params, x).compile()
        calls = max(1, 4096 // tokens)  # short sequences many at a time, to be above the clock

        def call(x: jax.Array = x, calls: int = calls, compiled: Any = compiled) -> Any:
            return [compiled(params, x) for _ in range(calls)]

        seconds = medians({"it": call}, repeats, warmup=1)["it"]["median"] / calls
        memory = getattr(compiled.memory_analysis(), "temp_size_in_bytes", float("nan"))
        rows.append(
            {
                "tokens": tokens,
                "seconds": seconds,
                "microseconds_per_token": seconds / tokens * 1e6,
                "bytes_per_token": memory / tokens,
            }
        )
    return rows
