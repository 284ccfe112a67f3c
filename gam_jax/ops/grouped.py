"""Products of rows that belong to different weights: as many operations as there are rows.

Entries (a token and an expert that it goes to) are put in the order of their groups, multiplied
by their group's weight, and put back. On a TPU `lax.ragged_dot` does that by a kernel, but its
gradient by weights is a product of all rows for each group; that is a kernel of ours in its place
(`gam_jax.ops.group_sums`). On a GPU `ragged_dot` is a product of all rows with all weights. It is
so on CPU too, where a loop runs over groups instead, and over blocks of their rows
(`gam_jax.ops.group_blocks`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from gam_jax.ops import group_sums
from gam_jax.ops.group_blocks import Rule, block_rows, by_blocks, by_blocks_apart
from sharding import collectives
from sharding.errors import UserError

METHODS = ("auto", "blocks", "ragged", "kernel")
CHOSEN = {"cpu": "blocks", "tpu": "kernel"}
"""By backend; "ragged" on others."""
FEW = 16
"""Groups whose weights may lie by themselves: each is a branch of the program."""

Weights = Float[Array, "G D F"] | tuple[Float[Array, "D F"], ...]
"""Stacked, or of each group by itself: a loop over blocks then copies none of them. Such weights
have no derivative."""


def count(weights: Weights) -> int:
    """G."""
    return len(weights) if isinstance(weights, tuple) else weights.shape[0]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["source", "place", "sizes"],
    meta_fields=["most", "method", "interpret"],
)
@dataclasses.dataclass(frozen=True)
class Groups:
    """Where N entries of G groups stand among M rows in the order of the groups.

    Attributes:
      source: [M], the entry that stands in a row; N where none does, which is at the end.
      place: [N], the row of an entry; M for one that is in no group.
      sizes: [G], entries of each group.
      most: a bound on the entries that are in a group.
      method: "blocks", "ragged" or "kernel".
      interpret: compute what a kernel says, on any device.
    """

    source: Int[Array, M]
    place: Int[Array, N]
    sizes: Int[Array, G]
    most: int
    method: str
    interpret: bool = False


def ranks(owner: Int[Array, N], groups: int) -> tuple[Int[Array, G], Int[Array, N]]:
    """The number of entries of each group, and each entry's rank within its group.

    Args:
      owner: the group of each entry; `groups` for an entry that is in no group.
      groups: G.

    Returns:
      Sizes, and ranks counted from 0. The rank of an entry that is in no group has no meaning.
    """
    order = jnp.argsort(owner, stable=True)
    sizes = jnp.bincount(owner, length=groups + 1).astype(jnp.int32)
    first = jnp.cumsum(sizes) - sizes
    count = jnp.arange(owner.shape[0], dtype=jnp.int32)
    rank = jnp.zeros_like(count).at[order].set(count - first[owner[order]], unique_indices=True)
    return sizes[:groups], rank


def make_groups(
    owner: Int[Array, N],
    groups: int,
    most: int = 0,
    method: str = "auto",
    backend: str | None = None,
) -> Groups:
    """The order of entries for `grouped_product`.

    Args:
      owner: the group of each entry, `groups` for one that is left out.
      groups: G.
      most: a bound on entries that are in a group, where it is known to be below N; 0 for N.
      method: "blocks"; "ragged", `lax.ragged_dot`; "kernel", which is that with a TPU's kernel
        for the gradient by weights of bfloat16 or float32, interpreted on CPU; or "auto", see
        `CHOSEN`.
      backend: where it will run, as "cpu"; None for JAX's default.

    Raises:
      ValueError: an unknown method, or "kernel" on a GPU.
    """
    if method not in METHODS:
        raise ValueError(f"grouped products: method '{method}' is not one of {', '.join(METHODS)}")
    count = owner.shape[0]
    most = min(most, count) if most else count
    backend = backend or jax.default_backend()
    if method == "auto":
        method = CHOSEN.get(backend, "ragged")
    if method == "kernel" and backend not in CHOSEN:
        raise UserError(f"grouped products: method 'kernel' is for TPUs, not {backend}")
    beyond = block_rows(most, groups)[-1] if method == "blocks" else 0
    rows = most + beyond  # where the last block may reach
    order = jnp.argsort(owner, stable=True).astype(jnp.int32)
    sizes = jnp.bincount(owner, length=groups + 1).astype(jnp.int32)[:groups]
    entries = jnp.arange(count, dtype=jnp.int32)
    place = jnp.zeros_like(order).at[order].set(entries, unique_indices=True)
    place = jnp.where(owner < groups, place, rows)
    source = jnp.pad(order[:most], (0, rows - most))
    source = jnp.where(jnp.arange(rows) < jnp.sum(sizes), source, count)
    return Groups(source, place, sizes, most, method, interpret=backend == "cpu")


def spread(
    x: Float[Array, "N D"], source: Int[Array, M], place: Int[Array, "N K"]
) -> Float[Array, "M D"]:
    """Copies token `source[m] // K` to row m, zeros where no entry stands.

    Its gradient is a gathering too, since a token knows its K rows.
    """
    return _spread(*collectives.vary_alike(x, source, place))


def collect(
    rows: Float[Array, "M D"],
    weights: Float[Array, "N K"],
    source: Int[Array, M],
    place: Int[Array, "N K"],
) -> Float[Array, "N D"]:
    """sum_k weights[n, k] rows[place[n, k]], summed in float32; nothing where place is M."""
    return _collect(*collectives.vary_alike(rows, weights, source, place))


def _row(x: Array, index: Array) -> Array:
    """x[index], zeros where the index is beyond the end."""
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _sum(rows: Array, weights: Array | None, place: Array) -> Array:
    total = jnp.zeros((place.shape[0], rows.shape[1]), jnp.float32)
    for k in range(place.shape[1]):
        found = _row(rows, place[:, k])
        total = total + (found if weights is None else weights[:, k, None] * found)
    return total.astype(rows.dtype)


@jax.custom_vjp
def _spread(x: Array, source: Array, place: Array) -> Array:
    beyond = x.shape[0] * place.shape[1]
    return _row(x, jnp.where(source < beyond, source // place.shape[1], x.shape[0]))


_spread.defvjp(
    lambda x, source, place: (_spread(x, source, place), place),
    lambda place, g: (_sum(g, None, place), None, None),
)


@jax.custom_vjp
def _collect(rows: Array, weights: Array, source: Array, place: Array) -> Array:
    return _sum(rows, weights, place)


def _collect_backward(saved: tuple[Array, ...], g: Array) -> tuple[Array, Array, None, None]:
    rows, weights, source, place = saved
    to_rows = _spread(g, source, place) * _row(weights.reshape(-1), source)[:, None]
    to_weights = [
        jnp.einsum("nd,nd->n", g, _row(rows, place[:, k]), preferred_element_type=jnp.float32)
        for k in range(place.shape[1])
    ]
    return to_rows.astype(rows.dtype), jnp.stack(to_weights, axis=1), None, None


_collect.defvjp(lambda *args: (_collect(*args), args), _collect_backward)


def grouped_product(
    groups: Groups,
    x: Float[Array, "M D"],
    weight: Float[Array, "G D F"],
    bias: Float[Array, "G F"] | None = None,
) -> Float[Array, "M F"]:
    """Each row times the weight of its group, plus its bias.

    Rows in which no entry stands have no meaning.
    """
    return _grouped(groups, _same, x, (weight,), () if bias is None else (bias,), ())


def grouped_feed_forward(
    groups: Groups,
    x: Float[Array, "M D"],
    weights: Sequence[Weights],
    biases: Sequence[Float[Array, "G F"]],
    out: Weights,
    activation: Callable[..., Array],
) -> Float[Array, "M D"]:
    """activation(x W_1 + b_1, x W_2 + b_2, ...) W_out^T of each row, by its group's weights.

    Args:
      groups: of the rows.
      x: rows; those in which no entry stands have no meaning here and in the result.
      weights: W_1, W_2, ..., all of them and W_out stacked, or none.
      biases: b_1, b_2, ..., or none.
      out: W_out.
      activation: of as many arrays of rows as there are weights, number by number.
    """
    return _grouped(groups, activation, x, tuple(weights), tuple(biases), (out,))


def row_bias(groups: Groups, bias: Float[Array, "G F"]) -> Float[Array, "M F"]:
    """The bias of each row's group."""
    rows = jnp.arange(groups.source.shape[0])
    owner = jnp.searchsorted(jnp.cumsum(groups.sizes), rows, side="right")
    return jnp.take(bias, owner, axis=0, mode="clip")


def _same(x: Array) -> Array:
    return x


def _grouped(
    groups: Groups,
    activation: Callable[..., Array],
    x: Array,
    weights: tuple[Any, ...],
    biases: tuple[Array, ...],
    out: tuple[Any, ...],
) -> Array:
    arrays, structure = jax.tree.flatten((x, weights, biases, out, groups.sizes))
    x, weights, biases, out, sizes = structure.unflatten(collectives.vary_alike(*arrays))
    if groups.method == "blocks":
        rule = Rule(activation, groups.most)
        if isinstance(weights[0], tuple):
            return by_blocks_apart(rule, x, weights, biases, out, sizes)
        return jnp.asarray(by_blocks(rule, x, weights, biases, out, sizes))
    if isinstance(weights[0], tuple):
        weights, out = (tuple(jnp.stack(w) for w in ws) for ws in (weights, out))
    product: Callable[..., Array] = lax.ragged_dot
    if groups.method == "kernel" and group_sums.suits(x, *weights, *out):
        product = functools.partial(_by_kernels, groups.interpret)
    found = [product(x, weight, sizes) for weight in weights]
    if biases:
        found = [y + row_bias(groups, bias) for y, bias in zip(found, biases, strict=True)]
    y = activation(*found)
    return product(y, jnp.swapaxes(out[0], 1, 2), sizes) if out else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_kernels(interpret: bool, x: Array, weight: Array, sizes: Array) -> Array:
    """`lax.ragged_dot` of arrays that vary over the same mesh axes."""
    return lax.ragged_dot(x, weight, sizes)


def _by_kernels_backward(interpret: bool, saved: tuple[Array, ...], g: Array) -> tuple[Any, ...]:
    x, weight, sizes = saved
    to_x = lax.ragged_dot(g, jnp.swapaxes(weight, 1, 2), sizes)
    return to_x, group_sums.sums_by_group(x, g, sizes, interpret).astype(weight.dtype), None


_by_kernels.defvjp(
    lambda interpret, x, weight, sizes: (lax.ragged_dot(x, weight, sizes), (x, weight, sizes)),
    _by_kernels_backward,
)
