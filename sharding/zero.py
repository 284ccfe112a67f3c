"""Parameters, gradients and optimizer state in shards over the data axis (ZeRO).

Sources: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", arXiv 1910.02054; for groups of several sizes see `sharding.degrees`. Mesh axes are named
from the innermost level to the outermost, so that a part of a larger group is a part of that of a
smaller one. Each message goes over one level.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from sharding import collectives


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["array", "slot"],
    meta_fields=["dim", "axes", "further"],
)
@dataclasses.dataclass(frozen=True)
class Shard:
    """This device's part of a parameter.

    Attributes:
      array: the part.
      slot: zeros of the shape of this device's part of the gradient, where that is smaller. What is
        differentiated is then the slot in the place of the array.
      dim: which dimension is split, counted from the end: a scan over layers may take off the
        first.
      axes: the mesh axes over which the array is split; () where it is whole.
      further: those over which the gradient is split besides.
    """

    array: Array
    slot: Array | None
    dim: int
    axes: tuple[str, ...]
    further: tuple[str, ...] = ()


def shards(params: Any, dims: Any, axes: Sequence[str], gradients: Sequence[str] = ()) -> Any:
    """Marks each array as a part of a parameter.

    Args:
      params: this device's arrays.
      dims: for each, the split dimension counted from the end, or 0 where it is whole.
      axes: the mesh axes that they are split over.
      gradients: those that their gradients are to be split over: `axes`, and what follows them.
    """
    axes, further = tuple(axes), tuple(gradients)[len(axes) :]
    if not axes and not further:
        return params

    def one(x: Array, dim: int) -> Any:
        if not dim:
            return x
        slot = None
        if further:
            shape = list(x.shape)
            shape[dim] //= math.prod(map(lax.axis_size, further))
            slot = collectives.typed_as(jnp.zeros(shape, x.dtype), x)
        return Shard(x, slot, dim, axes, further)

    return jax.tree.map(one, params, dims)


def differentiated(tree: Any) -> Any:
    """Plain arrays: of each shard what its gradient is taken by, in the shape of that gradient."""

    def one(x: Any) -> Any:
        if not _is_shard(x):
            return x
        return x.array if x.slot is None else x.slot

    return jax.tree.map(one, tree, is_leaf=_is_shard)


def put(tree: Any, arrays: Any) -> Any:
    """`tree` with `arrays` in the place of what `differentiated` gives."""

    def one(x: Any, array: Any) -> Any:
        if not _is_shard(x):
            return array
        field = "array" if x.slot is None else "slot"
        return dataclasses.replace(x, **{field: array})

    return jax.tree.map(one, tree, arrays, is_leaf=_is_shard)


def whole(tree: Any) -> Any:
    """Gathers every shard; arrays that are whole stay as they are.

    The gradient of a gathered parameter is reduce-scattered, so no device holds more of it than
    its part.
    """

    def gather(x: Any) -> Any:
        if not _is_shard(x):
            return x
        if x.slot is None:
            return gathered(x.array, x.dim, x.axes)
        names = (*x.axes, *x.further)
        pair = collectives.vary_alike(
            *(collectives.as_varying(a, names) for a in (x.array, x.slot))
        )
        return _whole(x.dim, x.axes, x.further, *pair)

    return jax.tree.map(gather, tree, is_leaf=_is_shard)


def gathered(x: Array, dim: int, axes: Sequence[str]) -> Array:
    """This device's part along `dim` (from the end) made whole over the axes, the outermost first.

    What is still a part of a large group is sent over the slow links between small ones. The
    result is typed as varying.
    """
    for axis in reversed(axes):
        x = lax.all_gather(collectives.as_varying(x, axis), axis, axis=x.ndim + dim, tiled=True)
    return x


def scattered(x: Array, dim: int, axes: Sequence[str]) -> Array:
    """Sums over the axes, the innermost first, keeping this device's part along `dim`."""
    for axis in axes:
        x = collectives.reduce_scatter(x, axis, x.ndim + dim)
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _whole(dim: int, axes: Sequence[str], further: Sequence[str], array: Array, _: Array) -> Array:
    """A gathered array whose gradient becomes that of the slot, `_`."""
    return gathered(array, dim, axes)


def _whole_forward(
    dim: int, axes: Sequence[str], further: Sequence[str], array: Array, slot: Array
) -> tuple[Array, None]:
    return gathered(array, dim, axes), None


def _whole_backward(
    dim: int, axes: Sequence[str], further: Sequence[str], _: None, g: Array
) -> tuple[None, Array]:
    return None, scattered(g, dim, (*axes, *further))


_whole.defvjp(_whole_forward, _whole_backward)


def has_shards(tree: Any) -> bool:
    """Whether any parameter of the tree is split, so that it must be gathered."""
    return any(x.axes for x in jax.tree.leaves(tree, is_leaf=_is_shard) if _is_shard(x))


def keeps(primitive: Any, *_: Any, **params: Any) -> bool:
    """What the backward pass of a layer in shards keeps, a policy for `jax.checkpoint`.

    Products, what other devices sent and what a layer has named (`jax.ad_checkpoint.
    checkpoint_name`) are kept; gathered parameters, and what is cheap, are made again. So are
    products of the highest precision: those of adapters, which are as large as parameters.
    """
    precise = params.get("precision") == (lax.Precision.HIGHEST, lax.Precision.HIGHEST)
    return primitive.name in _KEPT and not precise


_KEPT = {
    "dot_general",
    "psum",
    "psum_invariant",
    "pmax",
    "reduce_scatter",
    "all_gather_invariant",
    "all_to_all",
    "ppermute",
    "name",
}


def sum_gradients(
    grads: Any, dims: Any, state: Sequence[str], summed: Sequence[str], axes: Any
) -> Any:
    """Sums each gradient over its `axes`; where `dims` names a dimension they end as shards.

    Args:
      grads: each device's own, or its part of what is summed over `summed` already.
      dims: the dimension that is split, counted from the end, or 0.
      state: the mesh axes over which the sums are split in the end.
      summed: the first of these, over which they are summed and split as they come.
      axes: for each, the mesh axes that it is spread over.
    """

    def total(grad: Array, dim: int, axes: Sequence[str]) -> Array:
        if not dim:
            return collectives.psum(grad, axes)
        part = scattered(grad, dim, state[len(summed) :])
        return collectives.psum(part, [name for name in axes if name not in state])

    return jax.tree.map(total, grads, dims, axes)


def _is_shard(x: Any) -> bool:
    return isinstance(x, Shard)
