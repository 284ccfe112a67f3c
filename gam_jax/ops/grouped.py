"""Products of rows that belong to different weights: as many operations as there are rows.

Entries (a token and an expert that it goes to) are put in the order of their groups, multiplied
by their group's weight, and put back. `lax.ragged_dot` does that on accelerators; on CPU XLA
makes it a product of all rows with all weights, so there each group is padded to whole blocks,
and a block is multiplied by one weight (MegaBlocks, arXiv 2211.15841, section 5).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from gam_jax.ops.linear import transposed_product
from sharding import collectives

METHODS = ("auto", "blocks", "ragged")
LEAST_BLOCK, LARGEST_BLOCK = 8, 256
"""Rows of a block. Padding is half a block a group, and a block reads its weight once."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["source", "place", "owner", "sizes"],
    meta_fields=["block"],
)
@dataclasses.dataclass(frozen=True)
class Groups:
    """Where N entries of G groups stand among M rows in the order of the groups.

    Attributes:
      source: [M], the entry that stands in a row; N where none does.
      place: [N], the row of an entry; M for one that is in no group.
      owner: [M / block], the group of each block of rows; G for blocks without entries.
      sizes: [G], entries of each group.
      block: rows of a block; 1 for `lax.ragged_dot`.
    """

    source: Int[Array, M]
    place: Int[Array, N]
    owner: Int[Array, blocks]
    sizes: Int[Array, G]
    block: int


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
    block: int = 0,
    backend: str | None = None,
) -> Groups:
    """The order of entries for `grouped_product`.

    Args:
      owner: the group of each entry, `groups` for one that is left out.
      groups: G.
      most: a bound on entries that are in a group, where it is known to be below N; 0 for N.
      method: "blocks", "ragged", or "auto": blocks on CPU.
      block: rows of a block; 0 for a power of two such that padding is about an eighth.
      backend: where it will run, as "cpu"; None for JAX's default.
    """
    if method not in METHODS:
        raise ValueError(f"grouped products: method '{method}' is not one of {', '.join(METHODS)}")
    count = owner.shape[0]
    most = min(most, count) if most else count
    if method == "auto":
        method = "blocks" if (backend or jax.default_backend()) == "cpu" else "ragged"
    if method == "ragged":
        block = 1
    elif not block:
        wanted = max(most // (4 * groups), 1)
        block = min(max(1 << (wanted.bit_length() - 1), LEAST_BLOCK), LARGEST_BLOCK)
    used = min(groups, most)
    blocks = (most - used) // block + used  # of `used` groups that each end in a part of a block
    rows = blocks * block
    sizes, rank = ranks(owner, groups)
    ends = jnp.cumsum(-(-sizes // block))
    starts = jnp.concatenate([(ends - -(-sizes // block)) * block, jnp.array([rows])])
    place = jnp.where(owner < groups, starts[owner] + rank, rows).astype(jnp.int32)
    source = jnp.full(rows, count, jnp.int32)
    entries = jnp.arange(count, dtype=jnp.int32)
    source = source.at[place].set(entries, mode="drop", unique_indices=True)
    owners = jnp.searchsorted(ends, jnp.arange(blocks), side="right").astype(jnp.int32)
    return Groups(source, place, owners, sizes, block)


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
    if groups.block == 1:
        x, weight, sizes = collectives.vary_alike(x, weight, groups.sizes)
        y = lax.ragged_dot(x, weight, sizes)
    else:
        y = jnp.asarray(_product(*collectives.vary_alike(x, weight, groups.owner), groups.block))
    return y if bias is None else y + row_bias(groups, bias)


def grouped_product_transposed(
    groups: Groups, x: Float[Array, "M F"], weight: Float[Array, "G D F"]
) -> Float[Array, "M D"]:
    """Each row times the transposed weight of its group."""
    if groups.block == 1:
        x, weight, sizes = collectives.vary_alike(x, weight, groups.sizes)
        return lax.ragged_dot(x, jnp.swapaxes(weight, 1, 2), sizes)
    return _product_transposed(*collectives.vary_alike(x, weight, groups.owner), groups.block)


def row_bias(groups: Groups, bias: Float[Array, "G F"]) -> Float[Array, "M F"]:
    """The bias of each row's group."""
    rows = groups.source.shape[0]
    if groups.block == 1:
        ends = jnp.cumsum(groups.sizes)
        owner = jnp.searchsorted(ends, jnp.arange(rows), side="right")
        return jnp.take(bias, owner, axis=0, mode="clip")
    return jnp.repeat(jnp.take(bias, groups.owner, axis=0, mode="clip"), groups.block, axis=0)


Product = Callable[[Array, Array], Array]


def _by_block(product: Product, x: Array, weight: Array, owner: Array, block: int) -> Array:
    """`product` of each block of rows and its group's weight; zeros for blocks without entries."""
    groups = weight.shape[0]

    def one(_: None, turn: tuple[Array, Array]) -> tuple[None, Array]:
        rows, group = turn

        def do(rows: Array) -> Array:
            own = lax.dynamic_index_in_dim(weight, group, keepdims=False)
            return product(rows, own)

        shape = jax.eval_shape(do, rows)
        nothing = collectives.typed_as(jnp.zeros(shape.shape, shape.dtype), shape)
        return None, lax.cond(group < groups, do, lambda _: nothing, rows)

    _, y = lax.scan(one, None, (x.reshape(-1, block, x.shape[1]), owner))
    return y.reshape(x.shape[0], -1)


def _weight_gradient(like: Array, left: Array, right: Array, owner: Array, block: int) -> Array:
    """Sums left^T right over the blocks of each group, in float32."""
    groups = like.shape[0]

    def one(total: Array, turn: tuple[Array, Array, Array]) -> tuple[Array, None]:
        left, right, group = turn
        total = lax.cond(
            group < groups,
            lambda total: total.at[group].add(transposed_product(left, right)),
            lambda total: total,
            total,
        )
        return total, None

    start = collectives.typed_as(jnp.zeros(like.shape, jnp.float32), left)
    parts = (left.reshape(-1, block, left.shape[1]), right.reshape(-1, block, right.shape[1]))
    total, _ = lax.scan(one, start, (*parts, owner))
    return total.astype(like.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product(x: Array, weight: Array, owner: Array, block: int) -> Array:
    return _by_block(jnp.dot, x, weight, owner, block)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _product_transposed(x: Array, weight: Array, owner: Array, block: int) -> Array:
    return _by_block(lambda rows, own: jnp.dot(rows, own.T), x, weight, owner, block)


def _product_backward(
    block: int, saved: tuple[Array, Array, Array], g: Array
) -> tuple[Array, Array, None]:
    x, weight, owner = saved
    to_weight = _weight_gradient(weight, x, g, owner, block)
    return _product_transposed(g, weight, owner, block), to_weight, None


def _transposed_backward(
    block: int, saved: tuple[Array, Array, Array], g: Array
) -> tuple[Array, Array, None]:
    x, weight, owner = saved
    to_weight = _weight_gradient(weight, g, x, owner, block)
    return _product(g, weight, owner, block), to_weight, None


_product.defvjp(
    lambda x, w, owner, block: (_product(x, w, owner, block), (x, w, owner)), _product_backward
)
_product_transposed.defvjp(
    lambda x, w, owner, block: (_product_transposed(x, w, owner, block), (x, w, owner)),
    _transposed_backward,
)
