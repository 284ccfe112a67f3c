"""Time and memory of one block by the length of the sequence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmark.timing import medians
from gam_jax.layers import GAM, Block, Chunked, Layer
from gam_jax.params import init_params, rule_specs, shardings
from sharding.layout import Layout

LENGTHS = (256, 1024, 4096, 16_384, 65_536, 131_072)
WIDTH = 256


def run(repeats: int, layout: Layout) -> dict[str, Any]:
    """Forward and backward of one GAM block (width and slots 256), batch 1, float32.

    Returns:
      For the block taken whole and in chunks of 4,096 tokens, a row a length: seconds,
      microseconds and temporary bytes per token (the compiler's own count); and the largest over
      the smallest time per token from 4,096 tokens up.
    """
    block = Block(GAM(slots=WIDTH), width=WIDTH)
    result: dict[str, Any] = {}
    for name, layer in (("whole", block), ("chunked", Chunked(block))):
        rows = _rows(layer, repeats, layout)
        long = [row["microseconds_per_token"] for row in rows if row["tokens"] >= 4096]
        result[name] = rows
        result[f"{name}_spread_from_4096"] = max(long) / min(long)
    return result


def _rows(block: Layer, repeats: int, layout: Layout) -> list[dict[str, float]]:
    specs, axes = rule_specs(block.table(), layout), layout.axes
    params = jax.device_put(init_params(block.table(), jax.random.key(0)), shardings(specs, layout))
    stream = PartitionSpec(axes.data, axes.tokens or None)
    on_mesh = jax.shard_map(
        lambda p, x: block(p, x, None, axes)[0],
        mesh=layout.mesh,
        in_specs=(specs, stream),
        out_specs=stream,
    )
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.square(on_mesh(p, x))), argnums=(0, 1)))
    rows = []
    for tokens in LENGTHS:
        layout.check_batch(1, tokens)
        x = jax.random.normal(jax.random.key(1), (1, tokens, WIDTH))
        x = jax.device_put(x, NamedSharding(layout.mesh, stream))
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
