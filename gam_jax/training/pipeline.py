"""The parts of a batch through stages of a model's layers: forward and backward, or forward."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from gam_jax.layers.base import statistics
from gam_jax.models.base import BATCH, Batch, Measures, Model, Parts, Span
from gam_jax.params import Params, gathered
from sharding import collectives, zero
from sharding.axes import Axes
from sharding.layout import Layout
from sharding.pipeline import executor
from sharding.pipeline.stages import span
from sharding.pipeline.tables import Table, make_table, one_way

Weighed = Callable[[Any, Array], tuple[Array, Measures]]
"""(what an objective gives, scale) -> what is differentiated, and sums over devices."""
PartOf = Callable[[Array], tuple[Batch, Any]]
"""The number of a part -> the part, and its key."""
Last = Callable[[Params, Any, Any, Batch], tuple[Array, Measures]]
"""(parameters, stream, what all layers have counted, part) -> see `executor.Program.last`."""

PIPE = "pipe"


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
    table, schedule = model.table(), table_of(layout, accumulate)
    flow = _flow(model, layout)
    cut, axes = flow.cut, flow.axes

    def own(params: Params, batch: Batch, key: Array, scale: Array) -> tuple[Measures, Params]:
        def opened(arrays: Any) -> tuple[Any, Params]:
            whole = cut.own(gathered(table, zero.put(params, arrays)), axes)
            return zero.differentiated(whole), whole

        _, pull, whole = jax.vjp(opened, zero.differentiated(params), has_aux=True)
        shared, layers = flow.apart(whole)

        def part_of(number: Array) -> tuple[Batch, Array]:
            if accumulate == 1:
                return batch, key
            return _chosen(batch, number), jax.random.fold_in(key, number)

        def last(shared: Params, x: Any, counted: Any, part: Batch) -> tuple[Array, Measures]:
            return weighed(cut.last(shared, x, counted, part, axes), scale)

        program = flow.program(layers, part_of, last)
        sums, (grads, of_layers) = executor.run(schedule, PIPE, program, shared, layers, fill)
        of_layers = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), of_layers)
        return sums, pull({**grads, cut.blocks: of_layers})[0]

    return own


def scores_in_stages(
    model: Model, layout: Layout, accumulate: int, fill: float = 0.0
) -> Callable[[Params, Batch], Measures] | None:
    """(whole parameters but for those of layers, batch) -> what `Model.scored` gives.

    The rows of a batch [rows, ...] go through the stages in as many parts as training takes, or as
    many of these as divide a device's rows. None of a model that scores in a way of its own, of
    which its `parts` say nothing: it is scored with all rows at once, the stages in turn.

    Args:
      model: one with `parts`.
      layout: whose axis `pipe` has several devices.
      accumulate: parts of a training batch.
      fill: see `executor.run`.
    """
    flow, arrays = _flow(model, layout), model.batch_axes()
    cut, axes = flow.cut, flow.axes
    every = (*axes.batch, PIPE)
    if cut.scored is None and type(model).scored is not Model.scored:
        return None

    def last(shared: Params, x: Any, counted: Any, part: Batch) -> tuple[Array, Measures]:
        nothing = jnp.zeros(())  # is differentiated
        if cut.scored is not None:
            return nothing, cut.scored(shared, x, part, axes)
        total, _, measures = cut.last(shared, x, counted, part, axes)
        return nothing, {"loss": (total, model.count(part, axes)), **measures}

    def own(params: Params, batch: Batch) -> Measures:
        params = jax.tree.map(lambda x: collectives.as_varying(x, every), params)
        shared, layers = flow.apart(cut.own(params, axes))
        rows = {name: at.index(BATCH) for name, at in arrays.items() if BATCH in at}
        parts = math.gcd(accumulate, *(batch[name].shape[at] for name, at in rows.items()))

        def part_of(number: Array) -> tuple[Batch, None]:
            def one(x: Array, at: int) -> Array:
                size = x.shape[at] // parts
                return lax.dynamic_slice_in_dim(x, number * size, size, at)

            return {**batch, **{name: one(batch[name], at) for name, at in rows.items()}}, None

        way = one_way(layout.stages, parts, layout.parallel.turns)
        program = flow.program(layers, part_of, last, counts=cut.scored is None)
        return executor.run_forward(way, PIPE, program, shared, layers, fill)

    return own


@dataclasses.dataclass(frozen=True)
class _Flow:
    """A model as what stages do.

    Attributes:
      cut: its parts.
      axes: as a stage knows them.
      depth: slots for layers in a chunk.
      unlike: the layers of each chunk, by its place, where these differ; else ().
    """

    cut: Parts
    axes: Axes
    depth: int
    unlike: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Of what all layers count.

        The empty slots of a chunk write into the rows of what follows it, which are written later.
        """
        return sum(self.unlike) + self.depth if self.unlike else self.cut.depth

    def apart(self, whole: Params) -> tuple[Params, Any]:
        """What all stages have, and this stage's layers, [turns, layers of a chunk, ...]."""
        blocks = self.cut.blocks
        layers = jax.tree.map(lambda x: x.reshape(-1, self.depth, *x.shape[1:]), whole[blocks])
        return {name: x for name, x in whole.items() if name != blocks}, layers

    def program(
        self, layers: Any, part_of: PartOf, last: Last, counts: bool = True
    ) -> executor.Program:
        """What stages do.

        Args:
          layers: of this stage, see `apart`.
          part_of: the parts of the batch.
          last: what is done after the last layer.
          counts: whether it is told what layers have counted; else an empty dict.
        """
        cut, axes = self.cut, self.axes

        def first(shared: Params, number: Array) -> Any:
            part, key = part_of(number)
            x = cut.first(shared, part, axes, key)
            return x, none_counted(x, part, key) if counts else {}

        def none_counted(x: Any, part: Batch, key: Any) -> Any:
            """Zeros in the place of what all layers will have counted."""
            one = jax.tree.map(lambda p: p[0], layers)
            _, carry = jax.eval_shape(
                lambda: cut.layers(one, x, part, axes, key, Span(jnp.int32(0), self.depth))
            )

            def zeros(found: Any) -> Array:
                counted = jnp.zeros((self.rows, *found.shape[1:]), found.dtype)
                return collectives.typed_as(counted, found)

            return jax.tree.map(zeros, dict(statistics(carry)))

        def chunk(shared: Params, own: Params, state: Any, number: Array, place: Array) -> Any:
            (x, counted), (part, key) = state, part_of(number)
            before, count = span(place, self.depth, self.unlike)
            x, carry = cut.layers(own, x, part, axes, key, Span(before, self.depth, count))

            def put(all_: Array, new: Array) -> Array:
                names = sorted(collectives.varying(all_) | collectives.varying(new) | {PIPE})
                all_, new = (collectives.as_varying(a, names) for a in (all_, new))
                return lax.dynamic_update_slice_in_dim(all_, new, before, 0)

            found = dict(statistics(carry)) if counts else {}
            return x, jax.tree.map(put, counted, found)

        def ended(shared: Params, state: Any, number: Array) -> tuple[Array, Measures]:
            (x, counted), (part, _) = state, part_of(number)
            if self.unlike:
                counted = jax.tree.map(lambda found: found[: sum(self.unlike)], counted)
            return last(shared, x, counted, part)

        return executor.Program(first, chunk, ended)


def _flow(model: Model, layout: Layout) -> _Flow:
    cut = model.parts()
    assert cut is not None
    depth = cut.depth // (layout.stages * layout.parallel.turns)
    return _Flow(cut, layout.axes.within_stage, depth, layout.axes.layers)


def _chosen(batch: Batch, number: Array) -> Batch:
    """One of the parts of a batch [parts, ...]."""
    return {
        name: lax.dynamic_index_in_dim(x, number, 0, keepdims=False) for name, x in batch.items()
    }
