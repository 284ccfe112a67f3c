"""The batches of a run, placed on its mesh; each process reads its own rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import TracebackType

import jax
import numpy as np
from jax.sharding import NamedSharding

from gam_jax.data.pipeline import train_batches, validation_batches
from gam_jax.data.text import Text
from gam_jax.training.step import batch_spec
from sharding.layout import Layout
from sharding.placement import place, row_share

Batch = dict[str, jax.Array]
"""inputs, targets, weights: [B, T], or [accumulate, B / accumulate, T]."""


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """Rows of a global batch and the parts that it is taken in."""

    rows: int
    accumulate: int = 1


class TrainFeed:
    """The training stream from a position: global batches already delivered.

    Args:
      tokens: [N] training tokens.
      config: window, stride, shuffle, workers.
      shape: of a global batch.
      layout: the mesh.
      seed: of the shuffle.
      position: where to begin; it does not depend on mesh or processes.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        config: Text,
        shape: BatchShape,
        layout: Layout,
        *,
        seed: int,
        position: int,
    ) -> None:
        self.position = position
        self._accumulate = shape.accumulate
        self._sharding = NamedSharding(layout.mesh, batch_spec(layout, shape.accumulate))
        rows = shape.rows // shape.accumulate
        whole = (shape.accumulate, rows, config.window)[0 if shape.accumulate > 1 else 1 :]
        self._share = row_share(self._sharding, whole)
        self._parts = train_batches(
            tokens,
            config,
            batch=rows,
            seed=seed,
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
        parts = [next(self._parts) for _ in range(self._accumulate)]
        batch = parts[0]
        if self._accumulate > 1:
            batch = {name: np.stack([part[name] for part in parts]) for name in batch}
        self.position += 1
        return place(batch, self._sharding, self._share)


def validation_feed(tokens: np.ndarray, config: Text, rows: int, layout: Layout) -> Iterator[Batch]:
    """One pass over a split, in batches of at least `rows` rows: as many as the mesh divides."""
    split = layout.row_parts
    rows = -(-rows // split) * split
    sharding = NamedSharding(layout.mesh, batch_spec(layout))
    share = row_share(sharding, (rows, config.window))
    batches = validation_batches(
        tokens, config, batch=rows, process=share.part, processes=share.parts
    )
    return (place(batch, sharding, share) for batch in batches)
