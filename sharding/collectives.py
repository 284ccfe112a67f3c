"""Collectives in which `axis=None` means that the array is whole, so nothing is sent.

Everything here is called from the program of one device, inside `jax.shard_map(check_vma=True)`,
or with None outside any mesh. "Varying" and "invarying" are JAX's words for values that may
differ between, or are known to be equal on, the devices along an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def psum(x: Array, axis: str | Sequence[str] | None) -> Array:
    """Sum over the devices of `axis`; the result is invarying. Identity for None or ()."""
    if not axis:
        return x
    names = (axis,) if isinstance(axis, str) else tuple(axis)
    return lax.psum(as_varying(x, names), names)


def pmax(x: Array, axis: str | None) -> Array:
    """Maximum over the devices of `axis`, without a derivative. Identity for None."""
    x = lax.stop_gradient(x)
    return x if axis is None else lax.pmax(as_varying(x, axis), axis)


def all_gather(x: Array, axis: str | tuple[str, ...] | None, dim: int) -> Array:
    """Concatenates the shards of dimension `dim`; the result is invarying.

    Identity for None or (); of several axes the first is the outer one.
    """
    if not axis:
        return x
    return lax.all_gather(as_varying(x, axis), axis, axis=dim, tiled=True, to="invarying")


def reduce_scatter(x: Array, axis: str | None, dim: int) -> Array:
    """Sums partial arrays and keeps this device's part of dimension `dim`. Identity for None."""
    if axis is None:
        return x
    return lax.psum_scatter(as_varying(x, axis), axis, scatter_dimension=dim, tiled=True)


def turned(x: Array, axis: str | None, split: int, joined: int, length: int) -> Array:
    """Of an array in shards of dimension `joined`, shards of dimension `split`: one all-to-all.

    Sizes that the devices do not divide are filled up with zeros, which are cut when that dimension
    is whole again. Identity for None.

    Args:
      x: this device's shard.
      axis: the mesh axis.
      split: the dimension that is to be in shards.
      joined: the dimension that is to be whole.
      length: of `joined`, when it is whole.
    """
    if axis is None:
        return x
    x = filled(as_varying(x, axis), axis, split)
    x = lax.all_to_all(x, axis, split, joined, tiled=True)
    return lax.slice_in_dim(x, 0, length, axis=joined)


def filled(x: Array, axis: str | None, dim: int) -> Array:
    """x with zeros at the end of dimension `dim`, up to a multiple of the devices of `axis`."""
    over = -x.shape[dim] % axis_size(axis)
    return jnp.pad(x, [(0, over if i == dim % x.ndim else 0) for i in range(x.ndim)])


def own_shard(x: Array, axis: str | tuple[str, ...] | None, dim: int) -> Array:
    """This device's part of dimension `dim` of an array that every device holds whole."""
    if not axis:
        return x
    size = x.shape[dim] // lax.axis_size(axis)
    start = lax.axis_index(axis) * size
    return lax.dynamic_slice_in_dim(as_varying(x, axis), start, size, dim)


def axis_index(axis: str | tuple[str, ...] | None) -> Array | int:
    """This device's place along `axis`, or along several, the outer one first; 0 for None or ()."""
    return lax.axis_index(axis) if axis else 0


def axis_size(axis: str | tuple[str, ...] | None) -> int:
    """How many devices lie along `axis`; 1 for None or ()."""
    return lax.axis_size(axis) if axis else 1


def as_varying(x: Array, axis: str | Sequence[str]) -> Array:
    """x, typed as varying over `axis`; nothing is computed or sent.

    In the backward pass the gradient is then summed over that axis.
    """
    names = (axis,) if isinstance(axis, str) else tuple(axis)
    missing = tuple(name for name in names if name not in varying(x))
    return lax.pcast(x, missing, to="varying") if missing else x


def vary_alike(*arrays: Array) -> tuple[Array, ...]:
    """The arrays, each typed as varying over every mesh axis over which any of them varies.

    An op with a hand-written derivative needs this of its arguments. In the backward pass the cast
    becomes a sum over devices, which is what the gradient of a replicated parameter needs.
    """
    names = sorted(frozenset[str]().union(*(varying(array) for array in arrays)))
    return tuple(as_varying(array, names) for array in arrays)


def typed_as(tree: Any, like: Any) -> Any:
    """`tree`, each array typed as varying where its partner in `like` varies.

    `lax.scan` demands that its carry begins with the type that it ends with.
    """
    return jax.tree.map(lambda x, y: as_varying(x, sorted(varying(y))), tree, like)


def varying(x: Any) -> frozenset[str]:
    """The mesh axes over which an array (or its abstract value) is typed as varying."""
    typed = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    kind = typed.manual_axis_type  # an abstract value has none outside any mesh
    return frozenset() if kind is None else kind.varying


def left_halo(
    x: Float[Array, "B T D"], carry: Float[Array, "B H D"], axis: str | None
) -> Float[Array, "B H D"]:
    """The H inputs that come before this device's tokens.

    They are the last tokens of the shards to the left and, where those are too few, of `carry`,
    which stands before the first shard. A halo longer than a shard is sent in several hops, by
    each shard to as many neighbours as need it. What is sent is H tokens, however long the
    sequence.
    """
    if axis is None or lax.axis_size(axis) == 1 or carry.shape[1] == 0:
        return carry
    halo, tokens, size = carry.shape[1], x.shape[1], lax.axis_size(axis)
    x, parts, missing = as_varying(x, axis), [], halo
    for hop in range(1, size):
        if missing:
            sent = min(missing, tokens)
            shift = [(i, i + hop) for i in range(size - hop)]
            parts.insert(0, lax.ppermute(x[:, tokens - sent :], axis, shift))
            missing -= sent
    received = jnp.concatenate(parts, axis=1)  # zeros from where there is no shard
    # The shard r has r * T tokens of shards before it; what is left over is the carry's end.
    end = jnp.concatenate([carry, jnp.zeros_like(carry)], axis=1)
    start = jnp.minimum(lax.axis_index(axis) * tokens, halo)
    end = lax.dynamic_slice_in_dim(as_varying(end, axis), start, halo, axis=1)
    there = jnp.arange(halo) >= halo - start
    return jnp.where(there[:, None], jnp.pad(received, ((0, 0), (missing, 0), (0, 0))), end)


def right_halo(x: Float[Array, "B T D"], halo: int, axis: str | None) -> Float[Array, "B H D"]:
    """The H inputs that come after this device's tokens, zeros behind the last shard.

    A halo longer than a shard is sent in several hops, as in `left_halo`; x may have any axes
    behind the first two.
    """
    nothing = jnp.zeros((len(x), halo, *x.shape[2:]), x.dtype)
    if axis is None or halo == 0:
        return nothing
    x, parts, missing = as_varying(x, axis), [], halo
    size = lax.axis_size(axis)
    for hop in range(1, size):
        if missing:
            sent = min(missing, x.shape[1])
            shift = [(i + hop, i) for i in range(size - hop)]
            parts.append(lax.ppermute(x[:, :sent], axis, shift))  # zeros where there is no shard
            missing -= sent
    return jnp.concatenate([*parts, as_varying(nothing[:, :missing], axis)], axis=1)


def with_halos(x: Array, before: int, after: int, axis: str | None) -> Array:
    """x [B, T, ...] between the inputs before and after it, zeros beyond both ends of the whole."""
    if not before and not after:
        return x
    flat = x.reshape(*x.shape[:2], -1)
    left = left_halo(flat, jnp.zeros_like(flat, shape=(len(x), before, flat.shape[2])), axis)
    both = jnp.concatenate([left, flat, right_halo(flat, after, axis)], axis=1)
    return both.reshape(len(x), -1, *x.shape[2:])


def from_last(x: Array, axis: str | None) -> Array:
    """The value that the last device of `axis` holds, given to all. Identity for None."""
    if axis is None:
        return x
    last = lax.axis_index(axis) == lax.axis_size(axis) - 1
    return lax.psum(jnp.where(last, x, jnp.zeros_like(x)), axis)
