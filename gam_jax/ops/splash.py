"""Attention by the splash kernels of JAX for TPUs, compiled by Mosaic.

Source: jax.experimental.pallas.ops.tpu.splash_attention (JAX 0.10.2): flash attention in blocks of
queries and keys, where blocks that no query sees are not computed.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from gam_jax.ops.tiles import Rule
from sharding.opaque import opaque

BLOCKS = (512, 256, 128)
"""Queries and keys of a block: the first one that divides the tokens."""


def suits(rule: Rule, tokens: int, keys: int) -> bool:
    """Whether the kernels can compute it: whole causal sequences of whole blocks."""
    return rule.causal and tokens == keys and tokens % BLOCKS[-1] == 0


def suits_block(size: int, tokens: int) -> bool:
    """Whether the kernels can have blocks of so many tokens."""
    return size % BLOCKS[-1] == 0 and tokens % size == 0


def splash(
    rule: Rule,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    first: Int[Array, "B T"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B T H K"]:
    """softmax(scores) v in the dtype of q.

    Args:
      rule: causal, see `ops.attention.Rule`.
      q: queries.
      k: keys.
      v: values.
      first: where each token's document begins; None where there is one document.
      interpret: compute what the kernels say, on any device and slowly, for tests.
    """
    heads = [x.swapaxes(1, 2) for x in (q, k, v)]
    attend = functools.partial(_attend, rule, interpret)
    documents = () if first is None else (first,)
    pairs = 2 * math.prod(q.shape) * k.shape[1]
    (y,) = opaque(attend, documents, heads, (2 * pairs, 7 * pairs, 3 * pairs))
    return y.swapaxes(1, 2)


def _attend(rule: Rule, interpret: bool, *arguments: Array) -> tuple[Array]:
    *documents, q, k, v = arguments
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    kernel = _kernel(rule, q.shape[1], q.shape[2], interpret)

    def row(q: Array, k: Array, v: Array, *own: Array) -> Any:
        segments = kernels.SegmentIds(own[0], own[0]) if own else None
        return kernel((q * rule.scale).astype(q.dtype), k, v, segment_ids=segments)

    return (jax.vmap(row)(q, k, v, *documents),)


def _kernel(rule: Rule, heads: int, tokens: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    size = next(block for block in BLOCKS if tokens % block == 0)
    if rule.fixed and suits_block(rule.block, tokens):
        size = rule.block
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{name}": size for name in names}
    shape = (tokens, tokens)
    causal, windowed = kernels.CausalMask, functools.partial(kernels.LocalMask, offset=0)
    mask = windowed(shape, (rule.window - 1, 0)) if rule.window else causal(shape)
    return kernels.make_splash_mha(
        kernels.MultiHeadMask([mask] * heads),
        block_sizes=kernels.BlockSizes(**sizes),
        attn_logits_soft_cap=rule.soft_cap or None,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
