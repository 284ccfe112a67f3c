"""Ways to compute what has a softmax: attention's blocks, and those of logits in the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gam_jax.layers import Attention, LatentAttention
from gam_jax.models import LanguageModel
from gam_jax.ops.attention import attend_tokens
from gam_jax.ops.cached_attention import causal_rule
from gam_jax.ops.cross_entropy import Head, block_size, capped, loss_sum
from gam_jax.ops.fused_attention import attention, for_backend, implementation
from gam_jax.ops.splash import suits_block
from gam_jax.ops.tiles import Rule
from gam_jax.tuning.ops import Arrays, Op, Part, Settings, Shape, Tunable, shorter

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048)
LOGITS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Tokens whose logits are there at once."""


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
    counts = shape["heads"], shape["groups"], shape["groups"]
    sizes = shape["keys"], shape["keys"], shape.get("values", shape["keys"])
    return [
        jax.random.normal(own, (shape["rows"], shape["tokens"], *size), dtype)
        for own, size in zip(jax.random.split(key, 3), zip(counts, sizes, strict=True), strict=True)
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


def of_latent(layer: LatentAttention, part: Part) -> Shape | None:
    """What latent attention makes at the start of a sequence; None where tokens are split."""
    if "seq" in part.split:
        return None
    heads = part.of(layer.heads, "heads", "LatentAttention.heads")
    return {
        **{"rows": part.rows, "tokens": part.tokens, "groups": heads, "heads": heads},
        "keys": layer.head_size + layer.rotary_size,
        "values": layer.value_size or layer.head_size,
        **{"window": 0, "soft_cap": 0.0},
    }


def _in_our_blocks(shape: Shape, settings: Settings, backend: str | None) -> Callable[..., Any]:
    asked = _rule(shape).in_blocks(settings["block_size"])
    rule = for_backend(asked, backend, shape["tokens"])  # as the layer does
    return lambda q, k, v: attend_tokens(rule, q, k, v)[0].astype(q.dtype)


LATENT = Tunable(
    name="latent_attention",
    shapes={LatentAttention: of_latent},
    default={"block_size": 0},
    ways=lambda op, backend: [{"block_size": n} for n in shorter(BLOCKS, op.shape["tokens"])],
    call=_in_our_blocks,
    plainest=_whole,
    draw=_draw,
    differentiated=3,
    examples={
        "latent": lambda sizes: {
            **{"rows": sizes.rows, "tokens": sizes.tokens, "groups": sizes.heads},
            **{"heads": sizes.heads, "keys": sizes.size + sizes.size // 2, "values": sizes.values},
            **{"window": 0, "soft_cap": 0.0},
        }
    },
)


def of_model(model: LanguageModel, part: Part) -> Shape | None:
    """What the loss is given; None where devices share it, or the data say the vocabulary."""
    shared = any(not axis.startswith("data") for axis in part.split)
    if shared or model.streams > 1 or model.vocab is None:
        return None
    tokens = part.rows * part.tokens
    sizes = {"tokens": tokens, "width": model.width, "vocab": model.vocab}
    return {**sizes, "soft_cap": model.logit_cap}


def _loss(shape: Shape, settings: Settings, backend: str | None) -> Callable[..., Any]:
    how = Head(cap=shape["soft_cap"], block=settings["loss_block"] or block_size(backend))
    return lambda hidden, head, targets, weights: loss_sum(hidden, head, targets, weights, how)


def _loss_at_once(shape: Shape, hidden: Any, head: Any, targets: Any, weights: Any) -> Any:
    """All logits, float32."""
    logits = hidden.astype(jnp.float32) @ head.astype(jnp.float32).T
    found = jax.nn.log_softmax(capped(logits, shape["soft_cap"]))
    return -jnp.sum(weights * jnp.take_along_axis(found, targets[:, None], axis=1)[:, 0])


def _loss_arrays(shape: Shape, dtype: str, key: Any) -> Arrays:
    keys = jax.random.split(key, 4)
    tokens, width, vocab = (shape[name] for name in ("tokens", "width", "vocab"))
    hidden = jax.random.normal(keys[0], (tokens, width), dtype)
    head = (jax.random.normal(keys[1], (vocab, width)) * width**-0.5).astype(dtype)
    targets = jax.random.randint(keys[2], (tokens,), 0, vocab)
    return hidden, head, targets, jax.random.uniform(keys[3], (tokens,))


LOSS = Tunable(
    name="loss",
    shapes={LanguageModel: of_model},
    default={"loss_block": 0},
    ways=lambda op, backend: [{"loss_block": n} for n in shorter(LOGITS, op.shape["tokens"])],
    call=_loss,
    plainest=_loss_at_once,
    draw=_loss_arrays,
    differentiated=2,
    examples={
        "loss": lambda sizes: {
            **{"tokens": sizes.rows * sizes.tokens, "width": sizes.width},
            **{"vocab": 8192, "soft_cap": 0.0},
        }
    },
)
