"""Causal depthwise convolution that streams."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from sharding import collectives


def causal_conv(
    x: Float[Array, "B T D"],
    weight: Float[Array, "K D"],
    bias: Float[Array, D],
    carry: Float[Array, "B K-1 D"],
    axis: str | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B K-1 D"]]:
    """y_t = bias + sum_j weight[j] * x_{t-K+1+j}, j = 0..K-1, each channel alone.

    The last tap meets the current token. What comes before x is `carry`, the last K-1 inputs of
    the chunk before, zeros at the start of a sequence. The sum is K shifted multiply-adds: XLA's
    grouped convolution is many times slower on CPU.

    Args:
      x: this device's tokens.
      weight, bias: one filter a channel.
      carry: the K-1 inputs before x (before the first shard's, where tokens are split).
      axis: mesh axis that splits the tokens.

    Returns:
      y, in the dtype of x, and the carry after the last token.
    """
    taps, tokens = weight.shape[0], x.shape[1]
    halo = collectives.left_halo(x, carry, axis)
    padded = jnp.concatenate([halo, x], axis=1)
    y = bias + sum(weight[j] * padded[:, j : j + tokens] for j in range(taps))
    return y, collectives.from_last(padded[:, tokens:], axis)
