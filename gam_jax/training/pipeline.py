"""The parts of a batch through stages of a model's layers, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from gam_jax.layers.base import statistics
from gam_jax.models.base import Batch, Measures, Model, Span
from gam_jax.params import Params, gathered
from sharding import collectives, zero
from sharding.layout import Layout
from sharding.pipeline import executor
from sharding.pipeline.stages import span
from sharding.pipeline.tables import Table, make_table

Weighed = Callable[[Any, Array], tuple[Array, Measures]]
"""(what an objective gives, scale) -> what is differentiated, and sums over devices."""


def table_of(layout: Layout, accumulate: int) -> Table:
    """The table of a layout's schedule for so many parts of a batch.

    Raises:
      UserError: see `make_table`.
    """
    return make_table(layout.parallel.schedule, layout.stages, accumulate, layout.parallel.turns)


def through_stages(
    model: Model, layout: Layout, accumulate: int, weighed: Weighed, fill: float = 0.0
) -> Callable[[Params, Batch, Array, Array], tuple[Measures, Params]]:
    """(params, batch, key, scale) -> (sums over parts and devices, gradients), of one device.

    Gradients of what every stage has are still to be summed over the stages.

    Args:
      model: one with `parts`.
      layout: whose axis `pipe` has several devices.
      accumulate: parts of a batch [accumulate, rows, ...].
      weighed: makes of what the objective gives what is differentiated.
      fill: see `executor.run`.

    Raises:
      UserError: see `table_of`.
    """
    table, axes = model.table(), layout.axes.within_stage
    axis, stages, schedule = "pipe", layout.stages, table_of(layout, accumulate)
    cut = model.parts()
    assert cut is not None
    depth, unlike = cut.depth // (stages * layout.parallel.turns), layout.axes.layers
    # The empty places of a chunk write into the rows of what follows it, which are written later.
    rows = sum(unlike) + depth if unlike else cut.depth

    def own(params: Params, batch: Batch, key: Array, scale: Array) -> tuple[Measures, Params]:
        whole, pull = jax.vjp(lambda params: cut.own(gathered(table, params), axes), params)
        layers = jax.tree.map(lambda x: x.reshape(-1, depth, *x.shape[1:]), whole[cut.blocks])
        shared = {name: x for name, x in whole.items() if name != cut.blocks}

        def part_of(number: Array) -> tuple[Batch, Array]:
            if accumulate == 1:
                return batch, key
            chosen = {
                name: lax.dynamic_index_in_dim(x, number, 0, keepdims=False)
                for name, x in batch.items()
            }
            return chosen, jax.random.fold_in(key, number)

        def first(shared: Params, number: Array) -> Any:
            part, key = part_of(number)
            x = cut.first(shared, part, axes, key)
            return x, _none_counted(shared, x, part, key)

        def _none_counted(shared: Params, x: Array, part: Batch, key: Array) -> Any:
            """Zeros in the place of what all layers will have counted."""
            one = jax.tree.map(lambda p: p[0], layers)
            _, carry = jax.eval_shape(
                lambda: cut.layers(one, x, part, axes, key, Span(jnp.int32(0), depth))
            )

            def zeros(found: Any) -> Array:
                counted = jnp.zeros((rows, *found.shape[1:]), found.dtype)
                return collectives.typed_as(counted, found)

            return jax.tree.map(zeros, dict(statistics(carry)))

        def chunk(shared: Params, own: Params, state: Any, number: Array, place: Array) -> Any:
            (x, counted), (part, key) = state, part_of(number)
            before, count = span(place, depth, unlike)
            x, carry = cut.layers(own, x, part, axes, key, Span(before, depth, count))

            def put(all_: Array, new: Array) -> Array:
                names = sorted(collectives.varying(all_) | collectives.varying(new) | {axis})
                all_, new = (collectives.as_varying(a, names) for a in (all_, new))
                return lax.dynamic_update_slice_in_dim(all_, new, before, 0)

            return x, jax.tree.map(put, counted, dict(statistics(carry)))

        def last(shared: Params, state: Any, number: Array) -> tuple[Array, Measures]:
            part, _ = part_of(number)
            x, counted = state
            if unlike:
                counted = jax.tree.map(lambda found: found[: sum(unlike)], counted)
            return weighed(cut.last(shared, x, counted, part, axes), scale)

        program = executor.Program(first, chunk, last)
        sums, (grads, of_layers) = executor.run(schedule, axis, program, shared, layers, fill)
        of_layers = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), of_layers)
        return sums, zero.differentiated(pull({**grads, cut.blocks: of_layers})[0])

    return own
