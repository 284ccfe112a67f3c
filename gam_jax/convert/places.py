"""Where the matrices of a model's blocks stand in the arrays of a transformers folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import Any

import jax
import numpy as np

from gam_jax.convert.hf import family_of
from gam_jax.layers.adapted import COUNTED, matrices, sides
from gam_jax.models.language import LanguageModel
from gam_jax.params import Param, Table
from sharding.errors import UserError

BITS = 40
"""Of a label that are an element's place in its matrix; above them is the matrix's number."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows of an array [outputs, inputs] of a folder, which are outputs of a matrix here.

    Attributes:
      name: of the matrix, inside the model's blocks.
      layer: which of the matrices of that name, counted over all its leading axes.
      rows: of the array.
      outputs: of the matrix, in the order of those rows.
      inputs: of the matrix, in the order of the array's columns.
    """

    name: str
    layer: int
    rows: np.ndarray
    outputs: np.ndarray
    inputs: np.ndarray


def places(
    model: LanguageModel, names: Collection[str], official: str | None = None
) -> dict[str, tuple[int, list[Part]]]:
    """For each array of a folder that holds some of these matrices, its rows and its parts.

    Found by writing a folder of labels in the place of numbers, a block at a time: no family has
    to say anew where its arrays go.

    Args:
      model: without adapters.
      names: of matrices inside the model's blocks.
      official: the architecture of the folder; None for the first that expresses the model.

    Raises:
      UserError: no family writes the model; an array that is no whole matrix.
    """
    family, _ = family_of(model, official)
    table = model.stack.table()
    known = matrices(table)
    by_number = {number: name for number, name in enumerate(known, 1) if name in names}
    numbers = {name: number for number, name in by_number.items()}
    labels = family.split(model, _tree(table, lambda name, p: _labels(numbers.get(name, 0), p)))
    layers = family.split(model, _tree(table, lambda name, p: _layers(p)))
    found: dict[str, tuple[int, list[Part]]] = {}
    for i, (own, where) in enumerate(zip(labels, layers, strict=True)):
        pairs = zip(jax.tree.leaves(own), jax.tree.leaves(where), strict=True)
        layer = {int(label.flat[0]) >> BITS: int(place.flat[0]) for label, place in pairs}
        for part, array in family.write(model, own).items():
            name, parts = f"{family.blocks}{i}.{part}", []
            for number, rows, label in _by_number(name, array):
                matrix = by_number[number]
                inputs, outputs = divmod(label, sizes_of(known[matrix])[2])
                if (inputs != inputs[:1]).any() or (outputs != outputs[:, :1]).any():
                    raise _no_matrix(name)
                parts.append(Part(matrix, layer[number], rows, outputs[:, 0], inputs[0]))
            if parts:
                found[name] = len(array), parts
    return found


def array_names(model: LanguageModel, official: str | None = None) -> list[str]:
    """The names of all arrays of the blocks of a folder of that architecture."""
    family, _ = family_of(model, official)
    nothing = _tree(model.stack.table(), lambda _, param: _labels(0, param))
    blocks = enumerate(family.split(model, nothing))
    return [f"{family.blocks}{i}.{part}" for i, own in blocks for part in family.write(model, own)]


def sizes_of(param: Param) -> tuple[int, int, int]:
    """How many matrices a parameter is, and their inputs and outputs."""
    own = sides(param)
    assert own is not None
    end = own.counted + own.first
    shape = param.shape
    first, second = math.prod(shape[own.counted : end]), math.prod(shape[end:])
    count = math.prod(shape[: own.counted])
    return (count, second, first) if param.transposed else (count, first, second)


def _tree(table: Table, make: Any, path: tuple[str, ...] = ()) -> Any:
    return {
        name: make("/".join((*path, name)), entry)
        if isinstance(entry, Param)
        else _tree(entry, make, (*path, name))
        for name, entry in table.items()
    }


def _labels(number: int, param: Param) -> np.ndarray:
    """Of each element: the number and the place [inputs, outputs] in its matrix; 0 for none.

    Alike in all layers, so that those take no memory.
    """
    if not number:
        return np.broadcast_to(np.int64(0), param.shape)
    _, inputs, outputs = sizes_of(param)
    index = np.arange(inputs * outputs, dtype=np.int64).reshape(inputs, outputs)
    index = index.T if param.transposed else index
    own = sides(param)
    assert own is not None
    return np.broadcast_to(
        (number << BITS) + index.reshape(param.shape[own.counted :]), param.shape
    )


def _layers(param: Param) -> np.ndarray:
    """Of each element, which of the matrices of its parameter it is of; no memory for them."""
    counted = next((i for i, axis in enumerate(param.axes) if axis not in COUNTED), 0)
    lead = param.shape[:counted]
    index = np.arange(math.prod(lead)).reshape(*lead, *(1,) * (len(param.shape) - counted))
    return np.broadcast_to(index, param.shape)


def _by_number(name: str, labels: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """For each matrix in an array of labels its number, its rows, and the labels of these."""
    if not labels.any():
        return
    numbers = labels >> BITS
    if labels.ndim != 2 or (numbers != numbers[:, :1]).any():
        raise _no_matrix(name)
    for number in np.unique(numbers[:, 0]):
        if number:
            rows = np.flatnonzero(numbers[:, 0] == number)
            yield int(number), rows, labels[rows] & ((1 << BITS) - 1)


def _no_matrix(name: str) -> UserError:
    return UserError(f"'{name}' is no matrix of outputs and inputs: adapters have no place there")
