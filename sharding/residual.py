"""The doors between the residual stream and a layer that is split inside.

Where `axes.residual` is None the stream is whole on every device of the tensor axis. Otherwise
each holds its own part of the tokens, so that norms, dropout and additions are done once, and the
sums at a layer's end become reduce-scatters: the same bytes (Korthikanti et al. 2022, "Reducing
Activation Recomputation in Large Transformer Models", arXiv 2205.05198, section 4.2.2).
"""

from __future__ import annotations

from jax import lax
from jaxtyping import Array, Float

from sharding import collectives
from sharding.axes import Axes


def enter(x: Float[Array, "B t D"], axes: Axes, *logical: str) -> Float[Array, "B T D"]:
    """All tokens of the stream, for a layer whose named logical axes may be split.

    The layer's parts each find a gradient by x. They are summed here, once, where x is whole
    (Megatron's f, arXiv 2104.04473, section 2.3), or reduce-scattered over tokens.
    """
    if axes.residual is None:
        return split_alike(x, axes, *logical)
    x = collectives.as_varying(x, axes.residual)
    return lax.all_gather(x, axes.residual, axis=1, tiled=True)


def split_alike(x: Array, axes: Axes, *logical: str) -> Array:
    """What every device of the named axes holds alike, used by each for its own part of a layer.

    The parts' gradients by it are summed here, once.
    """
    split = {axes.of(name) for name in logical}
    return collectives.as_varying(x, sorted(name for name in split if name is not None))


def leave_sum(x: Float[Array, "B T D"], axis: str | None, axes: Axes) -> Float[Array, "B t D"]:
    """Sums what the devices of `axis` each have a part of; back in the stream's layout."""
    if axes.residual is None:
        return collectives.psum(x, axis)
    if axis is None:
        return collectives.own_shard(x, axes.residual, dim=1)
    return collectives.reduce_scatter(x, axis, dim=1)


def leave_channels(x: Float[Array, "B T d"], axis: str | None, axes: Axes) -> Float[Array, "B t D"]:
    """Joins the channels that the devices of `axis` hold; back in the stream's layout."""
    if axes.residual is None:
        return collectives.all_gather(x, axis, dim=2)
    if axis is None:
        return collectives.own_shard(x, axes.residual, dim=1)
    return lax.all_to_all(
        collectives.as_varying(x, axis), axis, split_axis=1, concat_axis=2, tiled=True
    )


def first_token(tokens: int, axes: Axes) -> Array | int:
    """Place in the sequence of the first of this device's `tokens` tokens of the stream."""
    index: Array | int = 0
    for axis in axes.tokens:
        index = index * collectives.axis_size(axis) + collectives.axis_index(axis)
    return index * tokens
