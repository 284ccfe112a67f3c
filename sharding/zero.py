"""Parameters, gradients and optimizer state in shards over the data axis (ZeRO).

Sources: Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter
Models", arXiv 1910.02054; for groups of several sizes see `sharding.degrees`. Mesh axes are named
from the innermost level to the outermost, so that a part of a larger group is a part of that of a
smaller one. A message goes over one level, but for sums in few bits (`sharding.quantised`).
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

from sharding import collectives, quantised
from sharding.quantised import Bits

_PARTS = -3
"""The dimension of parts of an array that is coded: [layers, parts, blocks, bytes]."""


@dataclasses.dataclass(frozen=True)
class Coding:
    """How a parameter is sent.

    Attributes:
      bits: of its numbers and of its gradient's.
      layers: how many of its first dimensions are those of layers, which are gathered one by one.
    """

    bits: Bits = Bits()
    layers: int = 0


@dataclasses.dataclass(frozen=True)
class Way:
    """From this device's part of a parameter to the whole, and of its gradient back.

    Attributes:
      dim: which dimension is split, counted from the end: a scan over layers may take off the
        first.
      axes: the mesh axes over which the part is one; () where it is whole.
      further: those over which the gradient is split besides.
      bits: that both are sent in.
      shape: of one layer's part as it is stored, in which it is coded.
    """

    dim: int
    axes: tuple[str, ...]
    further: tuple[str, ...] = ()
    bits: Bits = Bits()
    shape: tuple[int, ...] = ()


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["array", "slot"], meta_fields=["way"]
)
@dataclasses.dataclass(frozen=True)
class Shard:
    """This device's part of a parameter.

    Attributes:
      array: the part; bytes, see `sharding.quantised.coded`, where it is sent in few bits.
      slot: zeros of the shape of this device's part of the gradient, where that is smaller or is
        sent in few bits. What is differentiated is then the slot in the place of the array.
      way: how it is gathered.
    """

    array: Array
    slot: Array | None
    way: Way


def shards(
    params: Any,
    dims: Any,
    stored: Sequence[str],
    copied: Sequence[str] | None = None,
    gradients: Sequence[str] = (),
    codings: Any = None,
) -> Any:
    """Marks each array as a part of a parameter; gathers the second copy, if there is one.

    Args:
      params: this device's arrays.
      dims: for each, the split dimension counted from the end, or 0 where it is whole.
      stored: the mesh axes that they are split over.
      copied: the first of these, over which the second copy is split; None for no such copy.
      gradients: those that gradients are to be split over: `stored`, and what follows.
      codings: for each array a `Coding`; None to send all as they are.
    """
    axes = tuple(stored if copied is None else copied)
    further = tuple(gradients)[len(axes) :]
    if not axes and not further:
        return params

    def one(x: Array, dim: int, coding: Coding) -> Any:
        if not dim:
            return x
        bits, outer = coding.bits, stored[len(axes) :]
        way = Way(dim, axes, further, bits, x.shape[coding.layers :])
        slot = None
        if further or bits.weights or bits.gradients:
            shape = list(x.shape)
            shape[dim] *= math.prod(map(lax.axis_size, outer))
            shape[dim] //= math.prod(map(lax.axis_size, further))
            slot = collectives.typed_as(jnp.zeros(shape, x.dtype), x)
        if not bits.weights:
            return Shard(gathered(x, dim, outer), slot, way)
        numbers = x.reshape(*x.shape[: coding.layers], 1, -1)
        return Shard(gathered(quantised.coded(numbers, bits.weights), _PARTS, outer), slot, way)

    codings = jax.tree.map(lambda _: Coding(), params) if codings is None else codings
    return jax.tree.map(one, params, dims, codings)


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
            return gathered(x.array, x.way.dim, x.way.axes)
        names = (*x.way.axes, *x.way.further)
        pair = collectives.vary_alike(
            *(collectives.as_varying(a, names) for a in (x.array, x.slot))
        )
        return _whole(x.way, *pair)

    return jax.tree.map(gather, tree, is_leaf=_is_shard)


def gathered(x: Array, dim: int, axes: Sequence[str]) -> Array:
    """This device's part along `dim` (from the end) made whole over the axes, the outermost first.

    What is still a part of a large group is sent over the slow links between small ones. The
    result is typed as varying.
    """
    for axis in reversed(axes):
        x = lax.all_gather(collectives.as_varying(x, axis), axis, axis=x.ndim + dim, tiled=True)
    return x


def scattered(x: Array, dim: int, axes: Sequence[str], bits: int = 0) -> Array:
    """Sums over the axes, the innermost first, keeping this device's part along `dim`.

    Args:
      x: this device's term.
      dim: counted from the end.
      axes: the innermost first.
      bits: that numbers are sent in, see `quantised.reduce_scatter`; 0 for as they are.
    """
    if bits:
        return quantised.reduce_scatter(x, axes, x.ndim + dim, bits)
    for axis in axes:
        x = collectives.reduce_scatter(x, axis, x.ndim + dim)
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _whole(way: Way, array: Array, slot: Array) -> Array:
    """A gathered array whose gradient becomes that of the slot, straight through any rounding."""
    if not way.bits.weights:
        return gathered(array, way.dim, way.axes)
    parts = gathered(array, _PARTS, way.axes)
    parts = quantised.decoded(parts, way.bits.weights, math.prod(way.shape), slot.dtype)
    parts = parts.reshape(*parts.shape[:-1], *way.shape)
    first, place = parts.ndim - len(way.shape) - 1, parts.ndim + way.dim
    return lax.collapse(jnp.moveaxis(parts, first, place - 1), place - 1, place + 1)


def _whole_forward(way: Way, array: Array, slot: Array) -> tuple[Array, None]:
    return _whole(way, array, slot), None


def _whole_backward(way: Way, _: None, g: Array) -> tuple[None, Array]:
    return None, scattered(g, way.dim, (*way.axes, *way.further), way.bits.gradients)


_whole.defvjp(_whole_forward, _whole_backward)


def has_shards(tree: Any) -> bool:
    """Whether any parameter of the tree must be gathered, or made of few bits, to be used."""
    found = filter(_is_shard, jax.tree.leaves(tree, is_leaf=_is_shard))
    return any(x.way.axes or x.way.bits.weights for x in found)


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
    grads: Any, dims: Any, state: Sequence[str], summed: Sequence[str], axes: Any, codings: Any
) -> Any:
    """Sums each gradient over its `axes`; where `dims` names a dimension they end as shards.

    Args:
      grads: each device's own, or its part of what is summed over `summed` already.
      dims: the dimension that is split, counted from the end, or 0.
      state: the mesh axes over which the sums are split in the end.
      summed: the first of these, over which they are summed and split as they come.
      axes: for each, the mesh axes that it is spread over.
      codings: for each its `Coding`. What is summed over what is no part of `state` is sent as it
        is.
    """

    def total(grad: Array, dim: int, axes: Sequence[str], coding: Coding) -> Array:
        if not dim:
            return collectives.psum(grad, axes)
        part = scattered(grad, dim, state[len(summed) :], coding.bits.gradients)
        return collectives.psum(part, [name for name in axes if name not in state])

    return jax.tree.map(total, grads, dims, axes, codings)


def _is_shard(x: Any) -> bool:
    return isinstance(x, Shard)
