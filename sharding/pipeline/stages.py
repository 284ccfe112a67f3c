"""Layers that lie in stages along a mesh axis: in which order, and run in turn.

A stage holds `turns` chunks of neighbouring layers. Chunk c of stage s stands at place
c * stages + s of all chunks, and an array of layers holds stage after stage, each with its chunks
in order. With one turn that is the order of the layers themselves. Where chunks have unlike numbers
of layers each has slots for as many as the fullest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from sharding import collectives

Run = Callable[[Any, Any, Any, Array], tuple[Any, Any]]
"""(layers of a chunk, input, their carry, place of the chunk) -> output, carry after.

Input and output are trees of arrays, alike.
"""


def order(layers: int, stages: int, turns: int) -> np.ndarray:
    """int [layers]: for each place of an array on the mesh, the layer that lies there."""
    chunks = np.arange(layers).reshape(turns, stages, -1)
    return chunks.swapaxes(0, 1).reshape(-1)


def slots(layers: Sequence[int], stages: int) -> np.ndarray:
    """int [sum of layers]: where each layer lies, if every chunk has slots for the most layers.

    Args:
      layers: of each chunk, by its place.
      stages: of the pipeline.
    """
    most, turns = max(layers), len(layers) // stages
    first = [(place % stages * turns + place // stages) * most for place in range(len(layers))]
    return np.concatenate([start + np.arange(n) for start, n in zip(first, layers, strict=True)])


def span(place: Array, depth: int, layers: Sequence[int]) -> tuple[Array, Array | None]:
    """The layers before a chunk; and how many are in it, None for `depth`.

    Args:
      place: of the chunk.
      depth: slots for layers in it.
      layers: of each chunk, by its place, where these differ; else ().
    """
    if not layers:
        return place * depth, None
    before = np.cumsum([0, *layers[:-1]])
    return jnp.asarray(before)[place], jnp.asarray(layers)[place]


def gathered(x: Array, axis: str, turns: int, layers: Sequence[int] = ()) -> Array:
    """[layers, ...] in their own order, on every stage, from what each stage has of its own."""
    stages = collectives.axis_size(axis)
    whole = collectives.all_gather(x, axis, dim=0)
    if layers:
        return whole[slots(layers, stages)]
    return whole[np.argsort(order(whole.shape[0], stages, turns))]


def in_turn(run: Run, axis: str, turns: int, params: Any, x: Any, carry: Any) -> tuple[Any, Any]:
    """All layers, the stages working in turn: each hands on to the next, and the last to all.

    Every device runs a chunk in every turn, as long as any does; only its own counts.

    Args:
      run: a chunk of layers.
      axis: the mesh axis of stages.
      turns: chunks of a stage.
      params: of this device's layers, [layers, ...] in the order of `order`.
      x: the input, alike on all stages.
      carry: of this device's layers; None for none.

    Returns:
      The output, alike on all stages; and the carry of this device's layers.
    """
    stages, me = collectives.axis_size(axis), lax.axis_index(axis)
    ring = [(i, (i + 1) % stages) for i in range(stages)]

    def of_turn(tree: Any, turn: Array) -> Any:
        return jax.tree.map(
            lambda a: (
                a
                if turns == 1
                else lax.dynamic_slice_in_dim(a, turn * (len(a) // turns), len(a) // turns, 0)
            ),
            tree,
        )

    def step(state: tuple[Any, Any], place: Array) -> tuple[tuple[Any, Any], None]:
        x, kept = state
        turn = place // stages
        y, after = run(of_turn(params, turn), x, of_turn(carry, turn), turn * stages + me)
        mine = place % stages == me

        def put(all_: Array, new: Array) -> Array:
            start = turn * len(new)
            old = lax.dynamic_slice_in_dim(all_, start, len(new), 0)
            return lax.dynamic_update_slice_in_dim(all_, jnp.where(mine, new, old), start, 0)

        kept = jax.tree.map(put, kept, after)
        return (lax.ppermute(y, axis, ring), kept), None

    x = jax.tree.map(lambda x: collectives.as_varying(x, axis), x)
    place = jnp.int32(0)
    for _ in range(2):  # what comes out varies over at least as many axes
        y, after = jax.eval_shape(
            lambda x=x: run(of_turn(params, place), x, of_turn(carry, place), place + me)
        )
        x = collectives.typed_as(x, y)
    kept = jax.tree.map(lambda a: jnp.zeros((turns * len(a), *a.shape[1:]), a.dtype), after)
    kept = jax.tree.map(
        lambda a, b: collectives.as_varying(a, sorted(collectives.varying(b) | {axis})), kept, after
    )
    (x, kept), _ = lax.scan(step, (x, kept), jnp.arange(turns * stages))
    first = me == 0  # to which the last stage has handed it
    found = jax.tree.map(lambda x: jnp.where(first, x, jnp.zeros_like(x)), x)
    return lax.psum(found, axis), kept
