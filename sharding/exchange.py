"""What shards of a sequence hand to each other beyond a halo: blocks in a ring, states in a prefix.

Called from the program of one device, inside `jax.shard_map(check_vma=True)`; `axis=None` means
that the sequence is whole. Source: the sequence-parallel literature as summed up in
docs/parallelism.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from sharding import collectives

State = TypeVar("State")
Block = TypeVar("Block")


def ring(
    step: Callable[[State, Block, Array | int], State], state: State, block: Block, axis: str | None
) -> State:
    """Shows every shard's block to every device: state = step(state, block, source), n times.

    A device begins with its own block, then takes those of the shards to its left, one after
    another; n - 1 blocks are sent by each, and each may travel while the one before is worked
    on. Steps are recomputed in the backward pass, so what is stored for it is the n blocks and
    states, not what a step makes of them; gradients travel the ring the other way (Ring
    Attention, arXiv 2310.01889, which sends the blocks again instead of storing them).

    Args:
      step: pure; `source` is the index along `axis` of the shard whose block it is given.
      state: a tree of arrays; its types, but for where they vary, do not change.
      block: this shard's tree of arrays.
      axis: the mesh axis that splits the sequence.
    """
    if axis is None:
        return step(state, block, 0)
    size, own = lax.axis_size(axis), lax.axis_index(axis)
    block = jax.tree.map(lambda x: collectives.as_varying(x, axis), block)
    state = collectives.typed_as(state, jax.eval_shape(step, state, block, own))
    shift = [(i, (i + 1) % size) for i in range(size)]
    step = jax.checkpoint(step, prevent_cse=False)

    def turn(carry: tuple[State, Block], index: Array) -> tuple[tuple[State, Block], None]:
        state, block = carry
        moved = jax.tree.map(lambda x: lax.ppermute(x, axis, shift), block)
        return (step(state, block, (own - index) % size), moved), None

    (state, block), _ = lax.scan(turn, (state, block), jnp.arange(size - 1))
    return step(state, block, (own + 1) % size)


def prefix(
    element: State, combine: Callable[[State, State], State], axis: str | None, before: State
) -> tuple[State, State]:
    """The exclusive prefix of an associative `combine` over shards, and the total.

    The shard r gets combine(before, e_0, ..., e_{r-1}); the total, which all get alike, is
    combine(before, e_0, ..., e_{n-1}): the carry after the last shard. One element a shard is
    gathered, so what is sent does not depend on how many tokens a shard has (LASP-2,
    arXiv 2502.07563).

    Args:
      element: this shard's, a tree such as (decay, state).
      combine: combine(left, right), associative; it need not commute.
      axis: the mesh axis that splits the sequence.
      before: what comes before the first shard, the same on all.
    """
    if axis is None:
        return before, combine(before, element)

    def gathered(x: Array) -> Array:  # typed as varying: its gradient is reduce-scattered
        return lax.all_gather(collectives.as_varying(x, axis), axis)

    _, lefts = _fold(combine, before, jax.tree.map(gathered, element))
    own = lax.axis_index(axis)
    mine = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, own, keepdims=False), lefts)
    alike = jax.tree.map(lambda x: collectives.all_gather(x[None], axis, 0), element)
    total, _ = _fold(combine, before, alike)  # typed as the same on all; unused, it costs nothing
    return mine, total


def _fold(
    combine: Callable[[State, State], State], before: State, elements: State
) -> tuple[State, State]:
    """The combination of all elements [n, ...], and what stands before each."""
    before = collectives.typed_as(before, jax.tree.map(lambda x: x[0], elements))
    return lax.scan(lambda left, right: (combine(left, right), left), before, elements)
