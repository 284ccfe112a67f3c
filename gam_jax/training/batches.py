"""The batches of a run, placed on its mesh; each process reads its own rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import TracebackType

import jax
import numpy as np

from gam_jax.data.base import Dataset
from gam_jax.ids import check_ids
from gam_jax.local import Local
from gam_jax.models.base import Model
from gam_jax.params import shardings
from gam_jax.training.rounds import in_round, round_specs
from gam_jax.training.step import batch_specs
from sharding.layout import Layout
from sharding.placement import place, row_share

Batch = dict[str, jax.Array]
"""By name, [rows, ...] or [accumulate, rows / accumulate, ...]; a round as `round_specs` says."""


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """Rows of a global batch, the parts that it is taken in, and the workers that take it."""

    rows: int
    accumulate: int = 1
    local: Local = Local()


class TrainFeed:
    """The training stream from a position: global batches already delivered.

    It gives a batch at a time, or the batches of a round where there are workers.

    Args:
      data: what is read.
      model: what it is read for.
      shape: of a global batch.
      layout: the mesh.
      seed: of the order.
      position: where to begin; it does not depend on mesh or processes.
    """

    def __init__(
        self,
        data: Dataset,
        model: Model,
        shape: BatchShape,
        layout: Layout,
        *,
        seed: int,
        position: int,
    ) -> None:
        self.position = position
        self._shape, self._model = shape, model
        rows, local = shape.rows // shape.accumulate, shape.local
        parts = (shape.accumulate,) if shape.accumulate > 1 else ()
        if local.on:
            specs, self._dim = round_specs(model, layout, shape.accumulate), 1
            parts = (local.every, local.workers, *parts)
        else:
            specs, self._dim = batch_specs(model, layout, shape.accumulate), len(parts)
        self._shardings = shardings(specs, layout)
        arrays = data.batch(rows // local.workers).items()
        shapes = {name: (*parts, *x.shape) for name, x in arrays}
        self._share = row_share(self._shardings, shapes, self._dim)
        self._parts = data.train_stream(
            rows,
            seed,
            process=self._share.part,
            processes=self._share.parts,
            position=position * shape.accumulate,
        )

    def __enter__(self) -> TrainFeed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._parts.close()

    def __iter__(self) -> TrainFeed:
        return self

    def __next__(self) -> Batch:
        """The next global batch, or those of the next round.

        Raises:
          UserError: an id that the model does not have, see `Model.ids`.
        """
        accumulate, local = self._shape.accumulate, self._shape.local
        parts = [next(self._parts) for _ in range(accumulate * local.every)]
        for number, part in enumerate(parts):
            _check(f"training batch {self.position + number // accumulate}", part, self._model)
        batch = parts[0]
        if local.on:
            workers = local.workers // self._share.parts
            batch = {
                name: in_round([part[name] for part in parts], workers, accumulate)
                for name in batch
            }
        elif accumulate > 1:
            batch = {name: np.stack([part[name] for part in parts]) for name in batch}
        self.position += local.every
        return place(batch, self._shardings, self._share, self._dim)


def validation_feed(
    data: Dataset, part: str, model: Model, rows: int, layout: Layout
) -> Iterator[Batch]:
    """One pass over a part of the validation stream.

    Args:
      data: what is read.
      part: of its `parts`.
      model: what it is read for.
      rows: of a batch, at least: as many more as the mesh divides.
      layout: the mesh.

    Raises:
      UserError: an id that the model does not have, see `Model.ids`; when its batch is asked for.
    """
    split = layout.row_parts
    rows = -(-rows // split) * split
    placed = shardings(batch_specs(model, layout), layout)
    share = row_share(placed, {name: x.shape for name, x in data.batch(rows).items()}, 0)
    batches = data.validation_stream(part, rows, process=share.part, processes=share.parts)
    for number, batch in enumerate(batches):
        _check(f"validation batch {number}{f' of {part}' if part else ''}", batch, model)
        yield place(batch, placed, share, 0)


def _check(name: str, batch: Mapping[str, np.ndarray], model: Model) -> None:
    """Refuses ids that the model does not have, before they are on the device."""
    for array, count in model.ids().items():
        check_ids(f"{name}, {array}", batch[array], count, ("row", "position"))
