"""Time and memory of one block by the length of the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from experiments.benchmark.timing import Quantity, Rows, medians
from gam_jax.config import LAYER_KEY, from_dict
from gam_jax.layers import Block, Chunked, Layer
from gam_jax.params import init_params, rule_specs, shardings
from gam_jax.training.progress import Progress
from sharding.layout import Layout

LENGTHS = (256, 1024, 4096, 16_384, 65_536, 131_072)
WIDTH = 256


def mixer_of(name: str, tokens: int, slots: int = WIDTH) -> Layer:
    """A registered layer, "GAM" or with a variant "LinearMemory.gla", other fields by default.

    Args:
      name: of the layer; its variant after a point.
      tokens: that a cache of attention holds.
      slots: of GAM's bank.

    Raises:
      UserError: no such layer or variant, or one that cannot stand in a block by itself.
    """
    layer, _, variant = name.partition(".")
    cache = {LAYER_KEY: "Attention", "context": tokens}
    fields: dict[str, Any] = {
        "GAM": {"slots": slots},
        "Attention": cache,
        "FalconH1": {"attention": {**cache, "rotary": 1e11}},
        "WrittenGAM": {"memory": {LAYER_KEY: "LinearMemory"}},
    }.get(layer, {})
    fields |= {"variant": variant} if variant else {}
    return from_dict(Layer, {LAYER_KEY: layer, **fields}, f"--mixers={name}")


def run(
    repeats: int, layout: Layout, mixers: Sequence[str] = ("GAM",), lengths: Sequence[int] = LENGTHS
) -> Rows:
    """Forward and backward of a block (width 256; slots too, of GAM), batch 1, float32.

    Args:
      repeats: timed runs of each.
      layout: the mesh.
      mixers: names of the block's mixer, see `mixer_of`.
      lengths: tokens.

    Returns:
      For each block taken whole and in chunks of 4,096 tokens, a row a length: time,
      microseconds and temporary bytes per token (the compiler's own count); and the largest over
      the smallest time per token from 4,096 tokens up.
    """
    longest = max(lengths)
    blocks = {name: Block(mixer_of(name, longest), width=WIDTH) for name in mixers}
    result: Rows = {}
    progress = Progress()
    for mixer, block in blocks.items():
        for kind, layer in (("whole", block), ("chunked", Chunked(block))):
            progress.say(f"{mixer} {kind} ...")
            rows = _rows(layer, repeats, layout, lengths)
            long = [row["a token"].median for tokens, row in rows.items() if tokens >= 4096]
            name = f"{mixer} {kind}"
            result |= {f"{name}, {tokens:,} tokens": row for tokens, row in rows.items()}
            if len(long) > 1:
                most = Quantity.exactly(max(long) / min(long))
                result[f"{name}, from 4,096 tokens"] = {"largest over smallest": most}
    return result


def _rows(
    block: Layer, repeats: int, layout: Layout, lengths: Sequence[int]
) -> dict[int, dict[str, Quantity]]:
    specs, axes = rule_specs(block.table(), layout), layout.axes
    params = jax.device_put(init_params(block.table(), jax.random.key(0)), shardings(specs, layout))
    stream = PartitionSpec(axes.rows or None, axes.tokens or None)
    on_mesh = jax.shard_map(
        lambda p, x: block(p, x, None, axes)[0],
        mesh=layout.mesh,
        in_specs=(specs, stream),
        out_specs=stream,
    )
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.square(on_mesh(p, x))), argnums=(0, 1)))
    rows = {}
    for tokens in lengths:
        layout.check_batch(1, tokens)
        x = jax.random.normal(jax.random.key(1), (1, tokens, WIDTH))
        x = jax.device_put(x, NamedSharding(layout.mesh, stream))
        compiled = gradient.lower(params, x).compile()
        calls = max(1, 4096 // tokens)  # short sequences many at a time, to be above the clock

        def call(x: jax.Array = x, calls: int = calls, compiled: Any = compiled) -> Any:
            return [compiled(params, x) for _ in range(calls)]

        seconds = medians({"it": call}, repeats, warmup=1)["it"].times(1 / calls, "s")
        memory = getattr(compiled.memory_analysis(), "temp_size_in_bytes", float("nan"))
        rows[tokens] = {
            "time": seconds,
            "a token": seconds.times(1e6 / tokens, "us/token"),
            "temporary": Quantity.exactly(memory / tokens, "B/token"),
        }
    return rows
