"""Parameters, gradients and optimizer state in shards over the data axis (ZeRO).

Source: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", arXiv 1910.02054. Stage 1 shards the optimizer's state; stage 3 the parameters too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax
from jaxtyping import Array

from sharding import collectives


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["dim", "axis"]
)
@dataclasses.dataclass(frozen=True)
class Shard:
    """This device's part of a parameter.

    Attributes:
      array: the part.
      dim: which dimension is split, counted from the end: a scan over layers may take off the
        first.
      axis: the mesh axis.
    """

    array: Array
    dim: int
    axis: str


def shards(params: Any, dims: Any, axis: str | None) -> Any:
    """Marks each array as a part of a parameter.

    Args:
      params: this device's arrays.
      dims: for each, the split dimension counted from the end, or 0 where it is whole.
      axis: the mesh axis; None if nothing is split.
    """
    if axis is None:
        return params
    return jax.tree.map(lambda x, dim: Shard(x, dim, axis) if dim else x, params, dims)


def arrays(tree: Any) -> Any:
    """The inverse of `shards`."""
    return jax.tree.map(lambda x: x.array if _is_shard(x) else x, tree, is_leaf=_is_shard)


def whole(tree: Any) -> Any:
    """Gathers every shard; arrays that are whole stay as they are.

    The gradient of a gathered parameter is reduce-scattered, so no device holds more of it than
    of the parameter.
    """

    def gather(x: Any) -> Any:
        if not _is_shard(x):
            return x
        array = collectives.as_varying(x.array, x.axis)
        return lax.all_gather(array, x.axis, axis=array.ndim + x.dim, tiled=True)

    return jax.tree.map(gather, tree, is_leaf=_is_shard)


def has_shards(tree: Any) -> bool:
    """Whether any parameter of the tree is in shards."""
    return any(_is_shard(x) for x in jax.tree.leaves(tree, is_leaf=_is_shard))


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


def sum_gradients(grads: Any, dims: Any, axis: str | None, axes: Any) -> Any:
    """Sums each gradient over its `axes`; where `dims` names a dimension they end as shards.

    Args:
      grads: each device's own, over all the parameter or (a `Shard`) summed over `axis` already.
      dims: the dimension to scatter, counted from the end, or 0.
      axis: the mesh axis of shards.
      axes: for each, the mesh axes that it is spread over.

    Returns:
      Plain arrays.
    """

    def total(grad: Any, dim: int, axes: Sequence[str]) -> Array:
        rest = tuple(name for name in axes if name != axis)
        if _is_shard(grad):
            return collectives.psum(grad.array, rest)
        if not dim:
            return collectives.psum(grad, axes)
        part = collectives.reduce_scatter(grad, axis, grad.ndim + dim)
        return collectives.psum(part, rest)

    return jax.tree.map(total, grads, dims, axes, is_leaf=_is_shard)


def _is_shard(x: Any) -> bool:
    return isinstance(x, Shard)
