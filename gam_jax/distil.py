"""A model taught by another: hidden states and next tokens of the one beside those of the other.

Source: Puzzle (arXiv 2411.19146), section on global distillation.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from gam_jax import params as tables
from gam_jax.layers import Pattern
from gam_jax.models.language import LanguageModel
from gam_jax.models.trunk import Trunk
from gam_jax.params import Params
from sharding.axes import Axes
from sharding.errors import UserError

LEAST = 1e-12
"""Squared lengths are at least this, so that a state of zeros has a cosine of 0."""


class Through(NamedTuple):
    """What a model makes of tokens.

    Attributes:
      states: what enters the first block, then what each block gives.
      logits: float32, of the next token.
    """

    states: Float[Array, "N B T D"]
    logits: Float[Array, "B T V"]


def through(model: LanguageModel, params: Params, tokens: Int[Array, "B T"]) -> Through:
    """All states of the residual stream, on one device.

    Args:
      model: its blocks equal, or a `Pattern` of unlike ones.
      params: its own.
      tokens: ids.

    Raises:
      UserError: parallel streams or a ladder, whose states are others.
    """
    if model.streams > 1 or model.ladder:
        raise UserError("states of blocks are those of a model without streams and without ladder")
    axes = Axes()
    x, _ = model.embedded(params, tokens, None, axes)
    blocks = tables.cast(model.stack.table(), params["blocks"], x.dtype)
    if isinstance(model.block, Pattern):
        states = _of_pattern(model.block, model.depth, blocks, x)
    else:
        block = model.block

        def step(h: Array, own: Params) -> tuple[Array, Array]:
            h, _ = block(own, h, None, axes)
            return h, h

        _, after = lax.scan(step, x, blocks)
        states = jnp.concatenate([x[None], after])
    trunk = Trunk(model.stack, model.norm)
    hidden = model.scaled(trunk.normed(params, states[-1], axes))
    return Through(states, model.logits(params, hidden, axes))


def _of_pattern(pattern: Pattern, depth: int, blocks: Params, x: Array) -> Array:
    """Each layer by itself, turn after turn."""
    states = [x]
    for turn in range(depth):
        turned = jax.tree.map(lambda p, turn=turn: p[turn], blocks)
        for number, kind in enumerate(pattern.order):
            x, _ = pattern.layers[kind](pattern.of_layer(turned, number), x)
            states.append(x)
    return jnp.stack(states)


def divergence(wanted: Float[Array, "B T V"], found: Float[Array, "B T V"]) -> Float[Array, "B T"]:
    """KL(wanted || found) of the next token in nats, from logits."""
    p, q = jax.nn.log_softmax(wanted), jax.nn.log_softmax(found)
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def cosine_distance(
    wanted: Float[Array, "N B T D"], found: Float[Array, "N B T D"]
) -> Float[Array, " N"]:
    """1 - cosine of each state with the other model's, the mean over tokens."""

    def length(x: Array) -> Array:
        return jnp.sqrt(jnp.maximum(jnp.sum(x * x, axis=-1), LEAST))

    cosine = jnp.sum(wanted * found, axis=-1) / (length(wanted) * length(found))
    return jnp.mean(1 - cosine, axis=(1, 2))
