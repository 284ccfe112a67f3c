"""Rows that are drawn from a seed and their number, with nothing stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from gam_jax.data.arrays import ArraysDataset
from gam_jax.data.base import Data
from gam_jax.data.storage import digest_of
from sharding.bounds import Few

TO_SCORE = (1 << 32) - 1
"""The seed of the validation rows."""


@dataclasses.dataclass(frozen=True)
class Drawn(Data):
    """Data of which `row` draws any row of any seed; a subclass says how.

    Attributes:
      scored: validation rows.
    """

    scored: Few = 48

    @property
    def unit(self) -> tuple[str, int]:
        """What throughput counts, and how many of them a row has."""
        return "rows", 1

    def row(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """Row number `index` of the stream of a seed, with its weight."""
        raise NotImplementedError

    def open(self, files: Mapping[str, str] | None = None) -> ArraysDataset:
        """Draws the validation rows."""
        rows = [self.row(TO_SCORE, number) for number in range(self.scored)]
        held = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        unit, units = self.unit
        return ArraysDataset(
            config=self,
            source=self.row,
            held_out={"": held},
            sizes=self.sizes(),
            fingerprints={"signals": digest_of(dataclasses.asdict(self))},
            unit=unit,
            units_per_row=units,
        )

    def batch(self, rows: int) -> dict[str, Any]:
        """As one row has them."""
        import jax

        return {
            name: jax.ShapeDtypeStruct((rows, *array.shape), array.dtype)
            for name, array in self.row(0, 0).items()
        }
