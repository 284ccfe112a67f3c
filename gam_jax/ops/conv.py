"""Causal convolutions that stream."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gam_jax.ops import documents
from gam_jax.ops.checks import check_shape, check_starts, check_tokens
from gam_jax.ops.linear import linear
from sharding import collectives
from sharding.errors import UserError


def reach(kernel: int, dilation: int = 1) -> int:
    """How many tokens before the current one a convolution sees: (K-1) * dilation."""
    return (kernel - 1) * dilation


def causal_conv(
    x: Float[Array, "B T D"],
    weight: Float[Array, "K D"] | Float[Array, "K D F"],
    bias: Float[Array, D] | Float[Array, F] | None = None,
    *,
    state: Float[Array, "B H D"] | None = None,
    dilation: int = 1,
    axis: str | None = None,
    starts: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"] | Float[Array, "B T F"], Float[Array, "B H D"]]:
    """y_t = bias + sum_j weight[j] x_{t-(K-1-j)*dilation}, j = 0..K-1; zeros before the first.

    A weight [K, D] is depthwise, each channel alone; [K, D, F] mixes channels. The last tap
    meets the current token. The sum is of K shifted arrays: XLA's grouped convolution is many
    times slower on CPU.

    Args:
      x: inputs.
      weight: one filter a channel, or one for each pair of channels.
      bias: one number for each channel of the output; None for none.
      state: the last H = (K-1) * dilation inputs before x (before the first shard, where tokens
        are split); None for zeros.
      dilation: distance between taps.
      axis: mesh axis that splits the tokens. A shard sends its last H inputs to the next; shards
        may be shorter than H.
      starts: true where documents begin: a token sees inputs of its own document alone. None
        where all tokens belong to one.

    Returns:
      y in the dtype of x, and the float32 state after the last token: zeros in the place of what
      belongs to an earlier document.

    Raises:
      UserError: shapes that do not fit, or `starts` that is not bool.
    """
    op = "causal_conv"
    check_tokens(op, "x", x, "[B, T, D]")
    if weight.ndim not in (2, 3) or weight.shape[1] != x.shape[2] or not weight.shape[0]:
        raise UserError(
            f"{op}: weight {weight.shape} is not [K, D] or [K, D, F] with D = {x.shape[2]}"
        )
    if dilation < 1:
        raise UserError(f"{op}: dilation {dilation} is not at least 1")
    before = (x.shape[0], reach(weight.shape[0], dilation), x.shape[2])
    check_shape(op, "bias", bias, weight.shape[-1:])
    check_shape(op, "state", state, before)
    check_starts(op, starts, x.shape[:2])
    state = jnp.zeros(before, x.dtype) if state is None else state.astype(x.dtype)
    bias = jnp.zeros((), x.dtype) if bias is None else bias
    own = None if starts is None else documents.segments(starts, axis)
    y, after = segmented_conv(x, weight, bias, state, axis, dilation, own)
    return y.astype(x.dtype), after.astype(jnp.float32)


def segmented_conv(
    x: Float[Array, "B T D"],
    weight: Float[Array, "K D"] | Float[Array, "K D F"],
    bias: Float[Array, ""] | Float[Array, D] | Float[Array, F],
    carry: Float[Array, "B H D"],
    axis: str | None = None,
    dilation: int = 1,
    segments: Int[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"] | Float[Array, "B T F"], Float[Array, "B H D"]]:
    """`causal_conv` where documents are numbered already, as for several convolutions in a row.

    Args:
      x: as there.
      weight: as there.
      bias: as there; 0 for none.
      carry: the state, in the dtype of x; the one after the last token is in that dtype too.
      axis: as there.
      dilation: as there.
      segments: of this device's tokens, see `gam_jax.ops.documents.segments`.
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
