"""Causal convolutions that stream."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gam_jax.ops.linear import linear
from sharding import collectives


def reach(kernel: int, dilation: int = 1) -> int:
    """How many tokens before the current one a convolution sees: (K-1) * dilation."""
    return (kernel - 1) * dilation


def causal_conv(
    x: Float[Array, "B T D"],
    weight: Float[Array, "K D"] | Float[Array, "K D F"],
    bias: Float[Array, D] | Float[Array, F],
    carry: Float[Array, "B H D"],
    axis: str | None = None,
    dilation: int = 1,
    segments: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"] | Float[Array, "B T F"], Float[Array, "B H D"]]:
    """y_t = bias + sum_j weight[j] x_{t-(K-1-j)*dilation}, j = 0..K-1.

    A weight [K, D] is depthwise, each channel alone; [K, D, F] mixes channels. The last tap
    meets the current token. What comes before x is `carry`, the last H = (K-1) * dilation
    inputs of the chunk before, zeros at the start of a sequence. The sum is of K shifted arrays:
    XLA's grouped convolution is many times slower on CPU.

    Args:
      x: this device's tokens.
      weight: one filter a channel, or one for each pair of channels.
      bias: one number for each channel of the output.
      carry: the H inputs before x (before the first shard's, where tokens are split).
      axis: mesh axis that splits the tokens; shards may be shorter than H.
      dilation: distance between taps.
      segments: of this device's tokens, see `gam_jax.ops.documents.segments`: a token sees inputs
        of its own document alone, and what is carried on of an earlier one is zeros.

    Returns:
      y, in the dtype of x, and the carry after the last token.
    """
    taps, tokens = weight.shape[0], x.shape[1]
    padded = jnp.concatenate([collectives.left_halo(x, carry, axis), x], axis=1)
    parts = [slice(j * dilation, j * dilation + tokens) for j in range(taps)]
    shifted = [padded[:, part] for part in parts]
    after = padded[:, tokens:]
    if segments is not None:
        own = segments[..., None]
        before = jnp.zeros((*carry.shape[:2], 1), own.dtype)  # the carry's document has number 0
        every = jnp.concatenate([collectives.left_halo(own, before, axis), own], axis=1)
        same = (every[:, part] == own for part in parts)
        shifted = [jnp.where(see, part, 0) for see, part in zip(same, shifted, strict=True)]
        after = jnp.where(every[:, tokens:] == own[:, -1:], after, 0)
    if weight.ndim == 2:
        y = bias + sum(w * part for w, part in zip(weight, shifted, strict=True))
    else:
        flat = (part.reshape(-1, part.shape[2]) for part in shifted)
        products = sum(linear(part, w) for w, part in zip(weight, flat, strict=True))
        y = (bias + products).reshape(*x.shape[:2], -1)
    return y, collectives.from_last(after, axis)
