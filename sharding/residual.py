"""Between the residual stream and a layer whose inside is split over devices: in and out.

In the shapes below, T is the tokens that a layer works on: those of this device's shard of the
sequence. t is the tokens of the residual stream that this device holds between layers:

- `axes.residual` is None: t = T. Every device of the tensor axis holds the same stream.
- `axes.residual` is a mesh axis of n devices (the preset `tensor_tokens`): t = T / n. Each device
  holds its own part of the tokens, so norms, dropout and additions are done once, not on every
  device. The all-reduce at a layer's end becomes a reduce-scatter, and an all-gather stands at the
  next layer's beginning: the same bytes (Korthikanti et al. 2022, "Reducing Activation
  Recomputation in Large Transformer Models", arXiv 2205.05198, section 4.2.2).

Likewise D is the width of the stream, and d the channels of a layer's output that a device holds.
"""

from __future__ import annotations

from typing import Any

from jax import lax
from jaxtyping import Array, Float

from sharding import collectives, overlap
from sharding.axes import Axes


def enter(x: Float[Array, "B t D"], axes: Axes, *logical: str) -> Float[Array, "B T D"]:
    """The stream as a layer needs it: all T tokens, from the t that this device holds.

    In the backward pass each device has the gradient of its own part of the layer. They are summed
    here, once (Megatron's f, arXiv 2104.04473, section 2.3): by an all-reduce, or by a
    reduce-scatter where the stream's tokens are split.

    Args:
      x: the stream, this device's tokens.
      axes: the mesh around.
      *logical: the logical axes by which the layer is split inside, such as "heads".
    """
    if axes.residual is None:
        return split_alike(x, axes, *logical)
    x = collectives.as_varying(x, axes.residual)
    return lax.all_gather(x, axes.residual, axis=1, tiled=True)


def enter_map(
    function: overlap.Map[Any], params: Any, x: Float[Array, "B t D"], axes: Axes, *logical: str
) -> Any:
    """function(params, `enter`(x)), the products on the way while tokens still arrive.

    Where `axes.overlap` says so, the gather and the function become steps of a ring.

    Args:
      function: of each token alone, see `overlap.Map`; a tree of [B, T, ...] comes out.
      params: what it needs besides.
      x: the stream, this device's tokens.
      axes: the mesh around.
      *logical: as in `enter`.
    """
    if axes.residual is None or axes.overlap is None:
        return function(params, enter(x, axes, *logical))
    return overlap.gather_map(function, params, x, axes.residual, axes.overlap)


def leave_map(
    function: overlap.Map[Any], params: Any, x: Float[Array, "B T F"], axis: str | None, axes: Axes
) -> Float[Array, "B t D"]:
    """`leave_sum`(function(params, x)), sums on their way while the next tokens are multiplied.

    Where `axes.overlap` says so, the function and the scatter become steps of a ring.

    Args:
      function: of each token alone; gives this device's part of the sum.
      params: what it needs besides.
      x: what it is given, all tokens.
      axis: the mesh axis over which parts are summed.
      axes: the mesh around.
    """
    if axis is None or axes.residual is None or axes.overlap is None:
        return leave_sum(function(params, x), axis, axes)
    return overlap.map_scatter(function, params, x, axis, axes.overlap)


def split_alike(x: Array, axes: Axes, *logical: str) -> Array:
    """x, of which every device has a copy and which each uses for its own part of a layer.

    It changes the type alone. In the backward pass the gradients of the devices are summed here.

    Args:
      x: the same on all devices of the mesh axes that split `logical`.
      axes: the mesh around.
      *logical: the logical axes by which the layer is split inside.
    """
    split = {axes.of(name) for name in logical}
    return collectives.as_varying(x, sorted(name for name in split if name is not None))


def leave_sum(x: Float[Array, "B T D"], axis: str | None, axes: Axes) -> Float[Array, "B t D"]:
    """A layer's output as the stream holds it, from a partial sum on each device of `axis`.

    The sum is an all-reduce, or a reduce-scatter to t tokens where the stream's tokens are split.
    """
    if axes.residual is None:
        return collectives.psum(x, axis)
    if axis is None:
        return collectives.own_shard(x, axes.residual, dim=1)
    return collectives.reduce_scatter(x, axis, dim=1)


def leave_channels(x: Float[Array, "B T d"], axis: str | None, axes: Axes) -> Float[Array, "B t D"]:
    """A layer's output as the stream holds it, where each device of `axis` has d of D channels.

    The channels are joined by an all-gather, or by an all-to-all where the stream's tokens are
    split.
    """
    if axes.residual is None:
        return collectives.all_gather(x, axis, dim=2)
    if axis is None:
        return collectives.own_shard(x, axes.residual, dim=1)
    return lax.all_to_all(
        collectives.as_varying(x, axis), axis, split_axis=1, concat_axis=2, tiled=True
    )


def first_token(tokens: int, axes: Axes) -> Array | int:
    """The position in the sequence of the first token of the stream that this device holds.

    `tokens` is t, how many it holds.
    """
    index: Array | int = 0
    for axis in axes.tokens:
        index = index * collectives.axis_size(axis) + collectives.axis_index(axis)
    return index * tokens
