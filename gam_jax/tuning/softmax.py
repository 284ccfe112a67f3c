"""Ways to compute attention over the start of a sequence: its blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gam_jax.layers import Attention
from gam_jax.ops.cached_attention import causal_rule
from gam_jax.ops.cross_entropy import capped
from gam_jax.ops.fused_attention import attention, implementation
from gam_jax.ops.splash import suits_block
from gam_jax.ops.tiles import Rule
from gam_jax.tuning.ops import Arrays, Op, Part, Settings, Shape, Tunable, shorter

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048)


def of_attention(layer: Attention, part: Part) -> Shape | None:
    """What attention is given; None where keys go round a ring, or are not those of the tokens."""
    if "seq" in part.split or layer.sinks or layer.prefix:
        return None
    return {
        "rows": part.rows,
        "tokens": part.tokens,
        "groups": part.of(layer.groups, "heads", "Attention.kv_heads"),
        "heads": part.of(layer.heads, "heads", "Attention.heads"),
        "keys": layer.size,
        "window": layer.window,
        "soft_cap": layer.soft_cap,
    }


def _rule(shape: Shape) -> Rule:
    return causal_rule(shape["keys"] ** -0.5, shape["window"], shape["soft_cap"])


def _ways(op: Op, backend: str) -> Sequence[Settings]:
    """Blocks of ours, or of the kernels of JAX for TPUs; cuDNN and XLA have none to choose."""
    tokens = op.shape["tokens"]
    sizes = tokens, tokens, op.shape["keys"]
    program = implementation(backend, _rule(op.shape), *sizes, op.dtype)
    found = shorter(BLOCKS, tokens)
    if program == "splash":
        found = [size for size in found if suits_block(size, tokens)]
    return [{"block_size": size} for size in found if program in ("blocks", "splash")]


def _call(shape: Shape, settings: Settings, backend: str | None) -> Callable[..., Any]:
    rule = _rule(shape).in_blocks(settings["block_size"])
    return lambda q, k, v: attention(rule, q, k, v, backend)


def _whole(shape: Shape, q: Any, k: Any, v: Any) -> Any:
    """All scores at once, float32."""
    tokens, served = shape["tokens"], shape["heads"] // shape["groups"]
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, served, axis=2) for x in (k, v))
    scores = jnp.einsum("bthk,bshk->bhts", q, k) * shape["keys"] ** -0.5
    scores = capped(scores, shape["soft_cap"])
    seen = jnp.tril(jnp.ones((tokens, tokens), bool))
    if shape["window"]:
        seen &= ~jnp.tril(jnp.ones((tokens, tokens), bool), -shape["window"])
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights, v)


def _draw(shape: Shape, dtype: str, key: Any) -> Arrays:
    heads = shape["heads"], shape["groups"], shape["groups"]
    return [
        jax.random.normal(own, (shape["rows"], shape["tokens"], count, shape["keys"]), dtype)
        for own, count in zip(jax.random.split(key, 3), heads, strict=True)
    ]


ATTENTION = Tunable(
    name="attention",
    shapes={Attention: of_attention},
    default={"block_size": 0},
    ways=_ways,
    call=_call,
    plainest=_whole,
    draw=_draw,
    differentiated=3,
    examples={
        "attention": lambda sizes: {
            **{"rows": sizes.rows, "tokens": sizes.tokens, "groups": sizes.heads},
            **{"heads": sizes.heads, "keys": sizes.size, "window": 0, "soft_cap": 0.0},
        }
    },
)
