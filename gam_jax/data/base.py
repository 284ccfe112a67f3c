"""What data is: a configuration that opens a training stream and a fixed validation stream."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from sharding.bounds import check_bounds
from sharding.errors import UserError

Batch = dict[str, np.ndarray]
"""Arrays by name, each with its rows first; "weights" says how much each row or token counts."""

Sums = Mapping[str, tuple[float, float]]
"""Measure -> its sum over all that was scored, and the count (or weight) that it is a sum of."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Which data a run reads, as configuration. Registered in `gam_jax.data.DATA`.

    Attributes:
      name: what stands before the colon says which class of data it is, what stands after it is
        the class's own.
    """

    name: str = ""

    NAMES: ClassVar[tuple[str, ...]] = ()
    """What may stand before the colon."""

    FILES: ClassVar[tuple[str, ...]] = ()
    """Files that a run folder may keep of it, see `Dataset.files`."""

    def __post_init__(self) -> None:
        check_bounds(self, "data")

    @property
    def kept_files(self) -> tuple[str, ...]:
        """Those that a run folder keeps with this configuration."""
        return self.FILES

    def open(self, files: Mapping[str, str] | None = None) -> Dataset:
        """Reads what there is to read.

        Args:
          files: those that a run folder kept (`Dataset.files`), by name; None for a new run.

        Raises:
          UserError: anything that a person can mend, before any training starts.
        """
        raise NotImplementedError

    def batch(self, rows: int) -> dict[str, Any]:
        """Shapes and dtypes of a batch of so many rows (`jax.ShapeDtypeStruct`), known unread.

        Raises:
          UserError: the data must be opened to know it.
        """
        raise UserError(f"data.name={self.name}: its shapes are known only when it is opened")

    def sizes(self) -> dict[str, int]:
        """What a model is fitted to, as far as it is known unread, see `Dataset.sizes`."""
        return {}


class Stream:
    """An endless stream of this process's rows of the global batches.

    Attributes:
      position: global batches delivered so far. It is the whole state of the stream: a stream
        opened at that position goes on exactly, with any number of processes.
    """

    position: int

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Batch:
        raise NotImplementedError

    def close(self) -> None:
        """Stops the reading ahead."""


class Dataset:
    """Data that has been opened.

    Attributes:
      config: what it was opened with.
      unit: what throughput counts ("tokens", "images", "rows").
      units_per_row: how many of them a row of a batch holds.
      sizes: what a model is fitted to, such as vocab, classes or side.
      fingerprints: what changes whenever the data does, by name; a checkpoint records them.
      files: what a run folder keeps of the data, as text by file name.
      parts: names of the parts of the validation stream, each scored by itself.
    """

    config: Data
    unit: str = "rows"
    units_per_row: int = 1
    sizes: Mapping[str, int]
    fingerprints: Mapping[str, str]
    files: Mapping[str, str] = {}
    parts: tuple[str, ...] = ("",)

    def batch(self, rows: int) -> dict[str, Any]:
        """Shapes and dtypes of a batch, see `Data.batch`."""
        return self.config.batch(rows)

    def train_stream(
        self, rows: int, seed: int, process: int = 0, processes: int = 1, position: int = 0
    ) -> Stream:
        """The training stream.

        The rows of processes 0, 1, ... in order are the rows of the one-process batch.

        Args:
          rows: of the global batch.
          seed: of the order.
          process: which process this is.
          processes: how many there are.
          position: global batches already delivered.
        """
        raise NotImplementedError

    def validation_stream(
        self, part: str, rows: int, process: int = 0, processes: int = 1
    ) -> Iterator[Batch]:
        """One pass over a part of the validation stream, in batches of `rows` rows.

        The last batch is filled up with rows of weight 0. All processes get as many batches.
        """
        raise NotImplementedError

    def scores(self, sums: Mapping[str, Sums]) -> dict[str, float]:
        """What a person is told of a validation: the loss first.

        Args:
          sums: part -> measure -> (sum, count).
        """
        total: dict[str, list[float]] = {}
        for part in sums.values():
            for name, (value, count) in part.items():
                held = total.setdefault(name, [0.0, 0.0])
                held[0], held[1] = held[0] + value, held[1] + count
        means = {name: value / count for name, (value, count) in total.items() if count}
        return {"loss": means.pop("loss"), **means}

    def baselines(self) -> dict[str, dict[str, float]]:
        """What a model must beat: name -> scores; empty where nothing is known."""
        return {}

    def first(self, train: int, validation: int) -> Dataset:
        """That many first units of each stream alone; 0 for all.

        Raises:
          UserError: this kind of data cannot be cut.
        """
        if train or validation:
            raise UserError(
                f"train.tokens and train.validation_tokens cut text; data.name={self.config.name} "
                f"is not text: leave them 0"
            )
        return self

    def described(self) -> str:
        """How much there is, in words."""
        return self.config.name

    def changed(self, name: str, saved: Mapping[str, Any]) -> str:
        """What is told where a fingerprint is not the one that a checkpoint recorded.

        Args:
          name: of the fingerprint.
          saved: the configuration of the data that the checkpoint recorded, as JSON values.
        """
        return f"the {name} of '{self.config.name}' has changed"


@dataclasses.dataclass(frozen=True, eq=False)
class Unread(Dataset):
    """Data of which only the configuration is known: enough for shapes and sizes."""

    config: Data

    @property
    def sizes(self) -> Mapping[str, int]:  # type: ignore[override]
        """As far as the configuration tells them."""
        return self.config.sizes()
