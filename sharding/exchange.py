"""What shards of a sequence hand to each other beyond a halo: rings, prefixes, relays, reversal.

Called from the program of one device, inside `jax.shard_map(check_vma=True)`; `axis=None` means
that the sequence is whole. Source: the sequence-parallel literature as summed up in
docs/parallelism.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from sharding import collectives

State = TypeVar("State")
Block = TypeVar("Block")
Found = TypeVar("Found")


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


def ring_home(
    step: Callable[[State, Block, Found, Array | int], tuple[State, Found]],
    state: State,
    block: Block,
    found: Found,
    axis: str | None,
) -> tuple[State, Found]:
    """As `ring`, where each block takes along what is found for it on its way, and brings it home.

    What a hand-written backward pass of a ring needs: blocks of keys and values travel with their
    gradients. n - 1 blocks and n findings are sent by each device. It has no derivative.

    Args:
      step: (state, block, found, source) -> (state, found).
      state: as in `ring`.
      block: as in `ring`.
      found: a tree of arrays, what is found for a device's own block to begin with.
      axis: as in `ring`.
    """
    if axis is None:
        return step(state, block, found, 0)
    size, own = lax.axis_size(axis), lax.axis_index(axis)
    block = jax.tree.map(lambda x: collectives.as_varying(x, axis), block)
    for _ in range(2):  # what a step types as varying may make others vary
        types = jax.eval_shape(step, state, block, found, own)
        state, found = collectives.typed_as((state, found), types)
    shift = [(i, (i + 1) % size) for i in range(size)]

    def moved(tree: Any) -> Any:
        return jax.tree.map(lambda x: lax.ppermute(x, axis, shift), tree)

    def turn(carry: tuple[State, Block, Found], index: Array) -> tuple[Any, None]:
        state, block, found = carry
        state, found = step(state, block, found, (own - index) % size)
        return (state, moved(block), moved(found)), None

    (state, block, found), _ = lax.scan(turn, (state, block, found), jnp.arange(size - 1))
    state, found = step(state, block, found, (own + 1) % size)
    return state, moved(found)


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


def relay(run: Callable[[State], State], state: State, axis: str | None) -> State:
    """What this shard begins with, where a shard begins with what its left neighbour ends with.

    For recurrences that no prefix can shorten: shard r waits for r runs, one after another, so
    it is correct and not parallel. What is sent is one state a shard. Runs are done again in the
    backward pass, so what is stored for it is a state for each turn.

    Args:
      run: this shard's tokens, from the state before them to the state after. Arrays that it
        closes over must be typed as varying over `axis` already: a shard runs at its own turn,
        when no other can meet it in a collective over `axis`.
      state: what the first shard begins with, the same on all.
      axis: the mesh axis that splits the sequence.
    """
    if axis is None:
        return state
    size, own = lax.axis_size(axis), lax.axis_index(axis)
    state = jax.tree.map(lambda x: collectives.as_varying(x, axis), state)
    state = collectives.typed_as(state, jax.eval_shape(run, state))
    shift = [(i, i + 1) for i in range(size - 1)]

    def turn(state: State, index: Array) -> tuple[State, None]:
        after = lax.cond(own == index, run, lambda same: same, state)
        moved = jax.tree.map(lambda x: lax.ppermute(x, axis, shift), after)
        mine = jax.tree.map(lambda x, y: jnp.where(own == index + 1, x, y), moved, state)
        return mine, None

    return lax.scan(jax.checkpoint(turn, prevent_cse=False), state, jnp.arange(size - 1))[0]


def reverse(x: Array, axes: Sequence[str]) -> Array:
    """The sequence [B, T, ...] from its end to its start; `axes` split T, the outer one first."""
    x = jnp.flip(x, axis=1)
    for axis in axes:
        size = lax.axis_size(axis)
        shift = [(i, size - 1 - i) for i in range(size)]
        x = lax.ppermute(collectives.as_varying(x, axis), axis, shift)
    return x
