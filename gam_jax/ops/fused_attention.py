"""Attention by the best program that this machine has for the case: one signature."""

from __future__ import annotations

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gam_jax.ops import splash
from gam_jax.ops.attention import attend_tokens
from gam_jax.ops.tiles import BLOCK, Rule

BLOCKS = {"cpu": 128}
AT_ONCE = {"cpu": 2 * 128 * 128}
"""Where smaller blocks, and fewer rows and heads at once, are faster: their scores stay in the
cache of a processor, and its threads do not divide the products."""

UNFUSED = (
    "attention in {dtype} on a GPU is not cuDNN's, which takes bfloat16 and float16 alone: "
    "set the model's dtype to bfloat16 for it"
)
"""Said once where cuDNN would do all of what is asked for but the dtype."""


def implementation(
    backend: str,
    rule: Rule,
    tokens: int,
    keys: int,
    size: int,
    dtype: DTypeLike,
    cudnn: bool = True,
) -> str:
    """Which program computes a whole sequence, first query at the first key.

    Args:
      backend: "cpu", "gpu" or "tpu".
      rule: what is asked for.
      tokens: how many queries.
      keys: how many keys.
      size: channels of a head.
      dtype: of queries, keys and values.
      cudnn: whether cuDNN is there, as it is wherever a GPU is in use.

    Returns:
      "cudnn": the flash attention of cuDNN, which takes half precision and heads of at most 128
      channels, a multiple of 8. "xla": `jax.nn.dot_product_attention`, which holds all the scores
      at once and so is used up to one block of ours. "splash": the kernels of JAX for TPUs, which
      take whole blocks. "blocks": `attend_tokens`.
    """
    if backend == "tpu" and splash.suits(rule, tokens, keys):
        return "splash"
    if backend not in ("gpu", "tpu") or rule.soft_cap or (rule.window and not rule.causal):
        return "blocks"
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    if backend == "gpu" and cudnn and half and size <= 128 and size % 8 == 0:
        return "cudnn"
    return "xla" if max(tokens, keys) <= BLOCK else "blocks"


def for_backend(rule: Rule, backend: str | None, tokens: int) -> Rule:
    """The rule with what is fast there: how much at once, and blocks unless its own are `fixed`.

    Args:
      rule: what is asked for.
      backend: where it will run; None for JAX's default.
      tokens: queries of a row; one alone reads its keys as it is told.
    """
    if tokens == 1:
        return rule
    backend = backend or jax.default_backend()
    block = rule.block if rule.fixed else min(rule.block, BLOCKS.get(backend, BLOCK))
    return dataclasses.replace(rule, block=block, at_once=AT_ONCE.get(backend, 0))


@functools.cache
def has_cudnn() -> bool:
    """Whether JAX finds cuDNN: a program may be compiled for a GPU where there is neither."""
    one = jax.ShapeDtypeStruct((1, 8, 1, 8), jnp.bfloat16)
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    try:
        jax.eval_shape(attend, one, one, one)
    except RuntimeError:
        return False
    return True


def attention(
    rule: Rule,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G K"],
    backend: str | None = None,
    first: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T H K"]:
    """softmax(scores) v in the dtype of q, where query 0 stands at key 0.

    Args:
      rule: see `ops.attention.Rule`.
      q: queries.
      k: keys.
      v: values.
      backend: where it will run; None for JAX's default when this is traced.
      first: see `ops.attention.attend_tokens`; cuDNN and XLA cannot be told.

    Warns:
      UserWarning: on a GPU it is not cuDNN's for its dtype alone.
    """
    backend = backend or jax.default_backend()
    cudnn = backend == "gpu" and has_cudnn()
    shape = q.shape[1], k.shape[1], q.shape[3]
    chosen = implementation(backend, rule, *shape, q.dtype, cudnn)
    in_half = implementation(backend, rule, *shape, jnp.bfloat16, cudnn)
    if first is None and in_half == "cudnn" != chosen:
        warnings.warn(UNFUSED.format(dtype=q.dtype), stacklevel=1)
    if chosen == "splash":
        return splash.splash(rule, q, k, v, first)
    if chosen == "blocks" or first is not None:
        rule = for_backend(rule, backend, q.shape[1])
        return attend_tokens(rule, q, k, v, 0, 0 if first is None else first)[0].astype(q.dtype)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=rule.scale,
        is_causal=rule.causal,
        local_window_size=(rule.window - 1, 0) if rule.window else None,
        implementation=chosen,  # type: ignore[arg-type]
    )
