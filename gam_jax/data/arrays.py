"""Data that is given in Python: arrays, or a function that makes rows. For notebooks and tests."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex

import numpy as np

from gam_jax.data.base import Batch, Data, Dataset
from sharding.errors import UserError

if TYPE_CHECKING:
    from gam_jax.data.stream import TrainBatches

Rows = Mapping[str, np.ndarray] | Callable[[int, int], Mapping[str, Any]]
"""Arrays by name, rows first; or a function of (seed, row number) that gives one row."""

WEIGHTS = "weights"
ENDLESS = 1 << 31
"""Rows that a function is asked for before they come again."""


@dataclasses.dataclass(frozen=True)
class Arrays(Data):
    """Arrays or a function given in Python, see `arrays`.

    Attributes:
      name: `arrays:NAME`.
      shuffle: visit the training rows in a seeded random order, another one each epoch.
    """

    NAMES: ClassVar[tuple[str, ...]] = ("arrays",)

    name: str = "arrays:"
    shuffle: bool = True

    def open(self, files: Mapping[str, str] | None = None) -> Dataset:
        """Refuses: a name cannot bring back what was given in Python.

        Raises:
          UserError: always.
        """
        raise UserError(
            f"data.name={self.name} was given in Python: go on from there with fit(..., "
            f"resume=True), or register a class of data in a file and name it by --config=FILE.py"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ArraysDataset(Dataset):
    """Rows that are in memory, or made by a function.

    Attributes:
      config: the configuration.
      source: of the training rows.
      held_out: of the validation rows: part -> rows in memory.
      sizes: what a model is fitted to.
      fingerprints: of the rows.
      unit: what a row is.
      known: baselines, if any.
    """

    config: Data
    source: Rows
    held_out: Mapping[str, Mapping[str, np.ndarray]]
    sizes: Mapping[str, int]
    fingerprints: Mapping[str, str]
    unit: str = "rows"
    units_per_row: int = 1
    known: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    shuffle: bool = True

    @property
    def parts(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the validation rows."""
        return tuple(self.held_out)

    def batch(self, rows: int) -> dict[str, Any]:
        """As the first validation row has them."""
        import jax

        first = next(iter(self.held_out.values()))
        return {
            name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
            for name, array in first.items()
        }

    def train_stream(
        self, rows: int, seed: int, process: int = 0, processes: int = 1, position: int = 0
    ) -> TrainBatches:
        """Rows in a shuffled order, or as the function makes them."""
        from gam_jax.data.stream import endless, train_stream

        given = isinstance(self.source, Mapping)
        source = _Held(self.source) if isinstance(self.source, Mapping) else None
        held = next(iter(self.held_out.values()))
        made = None if given else _Made(self.source, seed, {k: x[0] for k, x in held.items()})  # type: ignore[arg-type]
        ordered = endless(source or made, seed, self.shuffle and given)  # type: ignore[arg-type]
        shares = {"process": process, "processes": processes, "position": position}
        return train_stream(ordered, batch=rows, **shares)

    def validation_stream(
        self, part: str, rows: int, process: int = 0, processes: int = 1
    ) -> Iterator[Batch]:
        """The rows of a part in order."""
        from gam_jax.data.stream import validation_stream

        source = _Held(self.held_out[part], multiple=rows)
        return validation_stream(source, batch=rows, process=process, processes=processes)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Those that were given."""
        return {name: dict(scores) for name, scores in self.known.items()}

    def described(self) -> str:
        """How many rows there are."""
        held = sum(len(part[WEIGHTS]) for part in self.held_out.values())
        own = f"{len(self.source[WEIGHTS]):,}" if isinstance(self.source, Mapping) else "endless"
        kind = self.unit if self.units_per_row == 1 else "rows"
        return f"{own} training and {held:,} validation {kind}"


class _Held:
    """Rows in memory as a source for Grain, filled up to a multiple with rows of weight 0."""

    def __init__(self, arrays: Mapping[str, np.ndarray], multiple: int = 1) -> None:
        self._arrays, self._multiple = arrays, multiple

    def __len__(self) -> int:
        return -(-len(self._arrays[WEIGHTS]) // self._multiple) * self._multiple

    def __getitem__(self, index: SupportsIndex) -> Batch:
        number = index.__index__()
        if number < len(self._arrays[WEIGHTS]):
            return {name: array[number] for name, array in self._arrays.items()}
        return {name: np.zeros_like(array[0]) for name, array in self._arrays.items()}


class _Made:
    """Rows that a function makes as a source for Grain."""

    def __init__(
        self, make: Callable[[int, int], Mapping[str, Any]], seed: int, like: Mapping[str, Any]
    ) -> None:
        self._make, self._seed, self._like = make, seed, like

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: SupportsIndex) -> Batch:
        number = index.__index__()
        row = with_weights(self._make(self._seed, number), one=True)
        _check_row(row, self._like, f"training row {number}")
        return row


def arrays(
    train: Rows,
    validation: Rows,
    *,
    name: str = "",
    sizes: Mapping[str, int] | None = None,
    unit: str = "rows",
    rows: int = 256,
    shuffle: bool = True,
) -> ArraysDataset:
    """A data set from arrays, or from functions that make rows: what `fit` trains a model on.

    data = arrays({"x": x, "y": y}, {"x": x_test, "y": y_test})

    Args:
      train: arrays by name, each [N, ...]; or a function of (seed, row number) -> arrays of one
        row. Where there are no "weights" [N], float32, each row counts 1.
      validation: likewise; of a function, `rows` rows are made with seed 2**32 - 1.
      name: what it is called in configurations, as arrays:NAME. A function has no fingerprint but
        this, so it must be given one that stands for it.
      sizes: what a model is fitted to (`Model.fitted`), such as {"classes": 10}.
      unit: what a row is, for throughput.
      rows: validation rows of a function.
      shuffle: whether arrays are visited in a random order.

    Raises:
      UserError: a function without a name, no rows, arrays of unlike lengths, weights below 0 or
        that are no numbers, or training rows of other arrays than validation rows.
    """
    if not name and not (isinstance(train, Mapping) and isinstance(validation, Mapping)):
        raise UserError("arrays(...) of a function needs name=, which stands for what it makes")
    held = validation if isinstance(validation, Mapping) else _made(validation, rows)
    held = with_weights(held)
    own = with_weights(train) if isinstance(train, Mapping) else train
    for which, part in (("train", own), ("validation", held)):
        if isinstance(part, Mapping):
            _check(which, part)
    first = {k: x[0] for k, x in own.items()} if isinstance(own, Mapping) else own(0, 0)
    _check_row(with_weights(first, one=True), {k: x[0] for k, x in held.items()}, "a training row")
    digests = {
        which: digest_of_arrays(part) if isinstance(part, Mapping) else f"function {name}"
        for which, part in (("train rows", own), ("validation rows", held))
    }
    config = Arrays(f"arrays:{name}", shuffle)
    return ArraysDataset(config, own, {"": held}, sizes or {}, digests, unit, shuffle=shuffle)


def with_weights(given: Mapping[str, Any], one: bool = False) -> dict[str, np.ndarray]:
    """Arrays with "weights" among them: 1 for each row where none were given.

    Args:
      given: of many rows, rows first; or of one row.
      one: whether it is one row.
    """
    found = {name: np.asarray(array) for name, array in given.items()}
    if WEIGHTS not in found and found:
        shape = () if one else np.shape(next(iter(found.values())))[:1]
        found[WEIGHTS] = np.ones(shape, np.float32)
    return found


def digest_of_arrays(given: Mapping[str, np.ndarray]) -> str:
    """A digest of names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, array in sorted(given.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _made(make: Callable[[int, int], Mapping[str, Any]], rows: int) -> dict[str, np.ndarray]:
    found = [with_weights(make((1 << 32) - 1, i), one=True) for i in range(rows)]
    for number, row in enumerate(found):
        _check_row(row, found[0], f"validation row {number}")
    return {name: np.stack([row[name] for row in found]) for name in found[0]} if found else {}


def _check(which: str, part: Mapping[str, np.ndarray]) -> None:
    lengths = {name: len(array) if array.ndim else 0 for name, array in part.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"arrays(...): {which} has arrays of unlike lengths: {lengths}")
    if not any(lengths.values()):
        raise UserError(f"arrays(...): {which} has no rows: give arrays [N, ...] with N above 0")
    weights = part[WEIGHTS]
    if not np.all(np.isfinite(weights)) or np.any(weights < 0):
        raise UserError(f"arrays(...): {which} has weights below 0 or that are no finite numbers")


def _check_row(row: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray], which: str) -> None:
    """Refuses a row that a program for another could not read, or that has no weight."""
    if row.keys() != like.keys() or any(
        x.dtype != like[name].dtype or x.shape != like[name].shape for name, x in row.items()
    ):
        raise UserError(
            f"arrays(...): {which} holds {_kinds(row)}, the first validation row "
            f"{_kinds(like)}: give both the same names, types and shapes"
        )
    if not np.all((row[WEIGHTS] >= 0) & np.isfinite(row[WEIGHTS])):
        raise UserError(
            f"arrays(...): {which} has weight {row[WEIGHTS]}: give finite weights, none below 0"
        )


def _kinds(row: Mapping[str, np.ndarray]) -> dict[str, str]:
    return {name: f"{x.dtype} {list(x.shape)}" for name, x in sorted(row.items())}
