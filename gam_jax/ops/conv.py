"""Causal convolutions that stream."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
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
    begin: Float[Array, "B H D"] | None = None,
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
      starts: true where documents begin: a token sees inputs of its own document alone, and
        `begin` before them. None where all tokens belong to one.
      begin: what documents begin with, like `state`; None for zeros.

    Returns:
      y in the dtype of x, and the float32 state after the last token: `begin` in the place of what
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
    check_shape(op, "begin", begin, before)
    check_starts(op, starts, x.shape[:2])
    state = jnp.zeros(before, x.dtype) if state is None else state.astype(x.dtype)
    bias = jnp.zeros((), x.dtype) if bias is None else bias
    own = None if starts is None else documents.segments(starts, axis)
    y, after = segmented_conv(x, weight, bias, state, axis, dilation, own, begin)
    return y.astype(x.dtype), after.astype(jnp.float32)


def segmented_conv(
    x: Float[Array, "B T D"],
    weight: Float[Array, "K D"] | Float[Array, "K D F"],
    bias: Float[Array, ""] | Float[Array, D] | Float[Array, F],
    carry: Float[Array, "B H D"],
    axis: str | None = None,
    dilation: int = 1,
    segments: Int[Array, "B T"] | None = None,
    begin: Float[Array, "B H D"] | None = None,
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
      begin: as there.
    """
    tokens = x.shape[1]
    padded = jnp.concatenate([collectives.left_halo(x, carry, axis), x], axis=1)
    parts = _parts(weight, tokens, dilation)
    shifted = [padded[:, part] for part in parts]
    after = padded[:, tokens:]
    every = None
    if segments is not None:
        own = segments[..., None]
        before = jnp.zeros((*carry.shape[:2], 1), own.dtype)  # the carry's document has number 0
        every = jnp.concatenate([collectives.left_halo(own, before, axis), own], axis=1)
        same = (every[:, part] == own for part in parts)
        shifted = [jnp.where(see, part, 0) for see, part in zip(same, shifted, strict=True)]
        after = jnp.where(every[:, tokens:] == own[:, -1:], after, 0)
    y = _weighed(weight, shifted, bias)
    if every is not None and begin is not None and begin.shape[1]:
        more, tail = _of_begin(weight, begin.astype(x.dtype), every[..., 0], dilation, y)
        y, after = y + more, after + tail
    return y, collectives.from_last(after, axis)


def _parts(weight: Array, tokens: int, dilation: int) -> list[slice]:
    """What each tap meets, of the inputs with those before them."""
    return [slice(j * dilation, j * dilation + tokens) for j in range(weight.shape[0])]


def _weighed(weight: Array, shifted: list[Array], bias: Array) -> Array:
    """[B, T, D] or [B, T, F]: what the taps make of their inputs, each [B, T, D]."""
    if weight.ndim == 2:
        return bias + sum(w * part for w, part in zip(weight, shifted, strict=True))
    flat = (part.reshape(-1, part.shape[2]) for part in shifted)
    products = sum(linear(part, w) for w, part in zip(weight, flat, strict=True))
    return (bias + products).reshape(*shifted[0].shape[:2], -1)


def _of_begin(
    weight: Array, begin: Array, every: Array, dilation: int, y: Array
) -> tuple[Array, Array]:
    """What `begin` adds to the output and to the state after the last token.

    It depends on a token's place in its document alone: to the first H it adds what the taps make
    of it with zeros behind, to others nothing.

    Args:
      weight: as in `causal_conv`.
      begin: likewise, H > 0.
      every: [B, H + T], numbers of documents, of the H tokens before these too.
      dilation: as in `causal_conv`.
      y: what it is added to.
    """
    reached, counted = begin.shape[1], jnp.arange(every.shape[1])
    changes = jnp.pad(every[:, 1:] != every[:, :-1], ((0, 0), (1, 0)))
    # A document that has begun before all of these has its tokens at places of H and above.
    places = counted - lax.cummax(jnp.where(changes, counted, 0), axis=1)

    def pick(x: Array, places: Array) -> Array:
        return jnp.take_along_axis(x, places[..., None], axis=1, mode="fill", fill_value=0)

    alone = jnp.concatenate([begin, jnp.zeros_like(begin)], axis=1)
    met = [alone[:, part] for part in _parts(weight, reached, dilation)]
    made = _weighed(weight, met, jnp.zeros((), begin.dtype))
    made, begin, _ = collectives.vary_alike(made, begin, y)  # gradients are summed of H tokens
    left = places[:, -1:] + 1 + jnp.arange(reached)
    return pick(made, places[:, reached:]), pick(begin, left)
