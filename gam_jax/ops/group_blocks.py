"""Feed-forwards by group on CPU: a loop over groups, and over blocks of a group's rows.

A group's weights are taken once (where they lie by themselves they are read where they are), and
what lies between two products stays in the processor's cache. Blocks of a few sizes, large ones
first, leave few rows over: a block that reaches beyond its group computes rows of the next, which
are written again in their turn. What is carried goes through no branch, since XLA copies it there.
The idea of blocks is MegaBlocks' (arXiv 2211.15841, section 5).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from sharding import collectives, products

LEAST, MOST = 8, 256
"""Rows of a block."""
SMALL = 32
"""Rows that a third size has at least: products of fewer rows take longer for each."""

Block = Callable[[Any, Any, int, Any], Any]


def block_rows(most: int, groups: int) -> tuple[int, ...]:
    """Rows of blocks, falling: about half of the mean group, half of that, and an eighth."""
    half = max(most // groups, 1).bit_length() - 2
    large = min(max(1 << max(half, 0), LEAST), MOST)
    sizes = {large, max(large // 2, LEAST), max(large // 8, SMALL)}
    return tuple(sorted((size for size in sizes if size <= large), reverse=True))


def each_block(most: int, sizes: Array, of_group: Callable[[Array], Block], state: Any) -> Any:
    """Runs `state = of_group(group)(start, left, rows, state)` for each block of each group.

    Args:
      most: a bound on the sum of `sizes`.
      sizes: [G], rows of each group, one after the other.
      of_group: what depends on the group alone; its result has a block of `rows` rows from
        `start`, of which the first `left` are of the group.
      state: what the first block begins with.
    """
    groups = sizes.shape[0]
    starts = jnp.cumsum(sizes) - sizes
    busy = jnp.flatnonzero(sizes, size=groups, fill_value=0)
    kinds, counted = block_rows(most, groups), min(groups, most)

    def group(i: Array, state: Any) -> Any:
        own = busy[i]
        run, start, left, usual = of_group(own), starts[own], sizes[own], most // counted
        for rows in kinds:
            over = rows - 1 if rows == kinds[-1] else 0  # the last may reach beyond the group
            count, turns = (left + over) // rows, (usual + over) // rows
            state = _blocks(run, (start, left, rows), count, turns, state)
            start, left, usual = start + count * rows, left - count * rows, usual % rows
        return state

    with products.turns(counted):
        return lax.fori_loop(0, jnp.count_nonzero(sizes), group, state)


def _blocks(run: Block, first: tuple[Any, Any, int], count: Any, turns: int, state: Any) -> Any:
    """`count` blocks of as many rows, `turns` of them if groups are equal."""
    start, left, rows = first
    with products.turns(turns):
        return lax.fori_loop(
            0, count, lambda i, state: run(start + i * rows, left - i * rows, rows, state), state
        )


Weights = tuple[Array, ...]


class Rule(NamedTuple):
    """Of what lies between the products, number by number; and a bound on the rows of groups."""

    activation: Callable[..., Array]
    most: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def by_blocks(
    rule: Rule, x: Array, weights: Weights, biases: Weights, out: Weights, sizes: Array
) -> Array:
    """activation(x W_1 + b_1, ...) W_out^T of each row [M, D] by its group's weights [G, D, F].

    `biases` are as many as the weights or none, `out` one or none. M is at least the sum of
    `sizes` and the last of `block_rows`. All arrays vary over the same mesh axes.
    """
    y, _ = _forward(rule, x, weights, biases, out, sizes, keep=False)
    return y


def by_blocks_apart(
    rule: Rule,
    x: Array,
    weights: tuple[Weights, ...],
    biases: Weights,
    out: tuple[Weights, ...],
    sizes: Array,
) -> Array:
    """`by_blocks` of weights that lie by themselves, G arrays each, without a derivative.

    A block's group chooses among branches, each with weights of its own, so that none is copied.
    """

    def of_group(group: Array) -> Block:
        shifts = [_at(a, group) for a in biases]

        def block(start: Array, _: Array, rows: int, y: Array) -> Array:
            def through(i: int, part: Array) -> Array:
                own, last = ([a[i] for a in arrays] for arrays in (weights, out))
                return _through(rule, part, own, shifts, last)[0]

            branches = [functools.partial(through, i) for i in range(sizes.shape[0])]
            part = lax.dynamic_slice_in_dim(x, start, rows)
            return lax.dynamic_update_slice_in_dim(y, lax.switch(group, branches, part), start, 0)

        return block

    width = out[0][0].shape[0] if out else weights[0][0].shape[1]
    y = _zeros((x.shape[0], width), x.dtype, x)
    return jnp.asarray(each_block(rule.most, sizes, of_group, y))


def _through(
    rule: Rule, part: Array, own: list[Array], shifts: list[Array], last: list[Array]
) -> tuple[Array, list[Array]]:
    """The result of some rows of a group, and what the activation is of."""
    found = [jnp.dot(part, weight) for weight in own]
    if shifts:
        found = [y + shift for y, shift in zip(found, shifts, strict=True)]
    y = rule.activation(*found)
    return jnp.dot(y, last[0].T) if last else y, found


def _forward(
    rule: Rule,
    x: Array,
    weights: Weights,
    biases: Weights,
    out: Weights,
    sizes: Array,
    keep: bool,
) -> tuple[Array, Weights]:
    """The result, and if they are to be kept what the activation is of."""

    def of_group(group: Array) -> Block:
        own, shifts, last = ([_at(a, group) for a in arrays] for arrays in (weights, biases, out))

        def block(start: Array, _: Array, rows: int, state: Any) -> Any:
            part = lax.dynamic_slice_in_dim(x, start, rows)
            y, found = _through(rule, part, own, shifts, last)
            made = (y, *found) if keep else (y,)
            return tuple(
                lax.dynamic_update_slice_in_dim(old, new, start, 0)
                for old, new in zip(state, made, strict=True)
            )

        return block

    shapes = [weights[0].shape[2 if not out else 1], *(w.shape[2] for w in weights if keep)]
    start = tuple(_zeros((x.shape[0], width), x.dtype, x) for width in shapes)
    y, *kept = each_block(rule.most, sizes, of_group, start)
    return y, tuple(kept)


def _by_blocks_forward(
    rule: Rule, x: Array, weights: Weights, biases: Weights, out: Weights, sizes: Array
) -> tuple[Array, Any]:
    y, kept = _forward(rule, x, weights, biases, out, sizes, keep=True)
    return y, (x, weights, biases, out, sizes, kept)


def _by_blocks_backward(rule: Rule, saved: Any, g: Array) -> tuple[Any, ...]:
    x, weights, biases, out, sizes, kept = saved

    def of_group(group: Array) -> Block:
        own, last = ([_at(a, group) for a in arrays] for arrays in (weights, out))

        def block(start: Array, left: Array, rows: int, state: Any) -> Any:
            by_x, by_weights, by_biases, by_out = state
            part, by_y, *found = (
                lax.dynamic_slice_in_dim(whole, start, rows) for whole in (x, g, *kept)
            )
            by_y = jnp.where(jnp.arange(rows)[:, None] < left, by_y, 0)  # of no other group
            hidden, to_found = jax.vjp(rule.activation, *found)
            if last:
                by_out = (_added(by_out[0], group, by_y, hidden),)
                by_y = jnp.dot(by_y, last[0])
            by_found = to_found(by_y)
            to_x = sum(jnp.dot(y, weight.T) for y, weight in zip(by_found, own, strict=True))
            by_x = lax.dynamic_update_slice_in_dim(by_x, to_x, start, 0)
            by_weights = tuple(
                _added(total, group, part, y) for total, y in zip(by_weights, by_found, strict=True)
            )
            if biases:
                by_biases = tuple(
                    total.at[group].add(jnp.sum(y.astype(jnp.float32), axis=0))
                    for total, y in zip(by_biases, by_found, strict=True)
                )
            return by_x, by_weights, by_biases, by_out

        return block

    def nothing(arrays: Weights) -> Weights:
        return tuple(_zeros(a.shape, jnp.float32, x) for a in arrays)

    start = _zeros(x.shape, x.dtype, x), nothing(weights), nothing(biases), nothing(out)
    found = each_block(rule.most, sizes, of_group, start)
    like = x, weights, biases, out
    return *jax.tree.map(lambda d, a: d.astype(a.dtype), found, like), None


by_blocks.defvjp(_by_blocks_forward, _by_blocks_backward)


def _at(x: Array, group: Array) -> Array:
    return lax.dynamic_index_in_dim(x, group, keepdims=False)


def _added(total: Array, group: Array, left: Array, right: Array) -> Array:
    """`total` with left^T right added to the matrix of one group, in float32."""
    return total.at[group].add(jnp.dot(left.T, right, preferred_element_type=jnp.float32))


def _zeros(shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
    return collectives.typed_as(jnp.zeros(shape, dtype), like)
