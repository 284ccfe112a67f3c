"""Attention over several sources of keys and values, each with a softmax of its own.

With Z_i = sum over the keys of source i of exp(q . k / sqrt(K)), attention over all keys at once is
sum_i (Z_i / sum_j Z_j) Attn_i: it weighs sources by how many keys they have and how well these fit.
Parallel fusion puts factors in the place of these shares, learned or fixed (Imagine Yourself, arXiv
2409.13346; MV-Adapter, arXiv 2412.03632). Shares as factors give back the one softmax.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gam_jax.ops.attention import attend_tokens
from gam_jax.ops.tiles import Rule
from sharding import collectives

Pair = tuple[Array, Array]
"""Keys [B, S, G, K] and values [B, S, G, V] of a source."""


def attend_source(
    q: Float[Array, "B T H K"], source: Pair
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """softmax(q k / sqrt(K)) v over the keys of one source, and log Z; float32.

    Args:
      q: queries.
      source: keys and values of any number of tokens.
    """
    rule = Rule(1 / math.sqrt(q.shape[-1]), causal=False)
    return attend_tokens(rule, q, *source)


def attend_sources(
    q: Float[Array, "B T H K"], sources: Sequence[Pair], factors: Sequence[Array | float]
) -> Float[Array, "B T H V"]:
    """sum_i factors[i] Attn_i.

    Args:
      q: queries.
      sources: keys and values of each.
      factors: one for each, a number or [B, T, H].
    """
    total = jnp.zeros((*q.shape[:3], sources[0][1].shape[-1]), jnp.float32)
    for source, factor in zip(sources, factors, strict=True):
        total += jnp.asarray(factor)[..., None] * attend_source(q, source)[0]
    return total


def shares(sums: Sequence[Float[Array, "B T H"]]) -> Float[Array, "N B T H"]:
    """Z_i / sum_j Z_j of each source, from its log Z."""
    return jax.nn.softmax(jnp.stack(list(sums)), axis=0)


def attend_together(
    q: Float[Array, "B T H K"], sources: Sequence[Pair], axis: str | None = None
) -> Float[Array, "B T H V"]:
    """One softmax over the keys of all sources, as if they were concatenated.

    Args:
      q: queries.
      sources: keys and values of each.
      axis: mesh axis that splits their tokens: two sums then join what its devices have found.
    """
    keys, values = (jnp.concatenate(parts, 1) for parts in zip(*sources, strict=True))
    out, log_sum = attend_source(q, (keys, values))
    if axis is None:
        return out
    own = jnp.exp(log_sum - collectives.pmax(log_sum, axis))
    return collectives.psum(own[..., None] * out, axis) / collectives.psum(own, axis)[..., None]
