"""How well a model does on validation data."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from gam_jax.data.base import Dataset
from gam_jax.models.base import Measures, Model
from gam_jax.params import Params
from gam_jax.training.batches import Batch, validation_feed
from gam_jax.training.step import make_nan_finder
from sharding.errors import UserError
from sharding.layout import Layout


class NotANumber(UserError):
    """A loss that is not a number: the parameters are not sound.

    Attributes:
      what: where it was found.
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: the parameters are not sound")
        self.what = what


@dataclasses.dataclass(frozen=True)
class Score:
    """What a validation found.

    Attributes:
      values: the scores by name, "loss" among them, see `Dataset.scores`.
      count: of the units that were scored, by weight.
      unit: what they are.
    """

    values: dict[str, float]
    count: int
    unit: str

    @property
    def loss(self) -> float:
        """The validation loss."""
        return self.values["loss"]

    def to_json(self) -> dict[str, float]:
        """The scores, and the count under the name of its unit."""
        return {**self.values, self.unit: self.count}


def score(
    eval_step: Callable[..., Any],
    params: Params,
    data: Dataset,
    model: Model,
    rows: int,
    layout: Layout,
) -> Score:
    """The scores of the whole validation stream: sums in float64, divided once at the end.

    Args:
      eval_step: see `step.make_eval_step`.
      params: of the model.
      data: what is scored.
      model: what scores it.
      rows: of a batch, at least.
      layout: the mesh.

    Raises:
      UserError: nothing in the validation data has a weight.
      NotANumber: the first loss that is none, by its batch, row and position.
    """
    one = functools.partial(_summed, eval_step, params, data, model, rows, layout)
    sums = {part: one(part) for part in data.parts}
    count = sum(part["loss"][1] for part in sums.values())
    if not count or not all(part["loss"][1] for part in sums.values()):
        raise UserError(f"the validation data of {data.config.name} has nothing of weight above 0")
    return Score(data.scores(sums), round(count), data.unit)


def _summed(
    eval_step: Callable[..., Any],
    params: Params,
    data: Dataset,
    model: Model,
    rows: int,
    layout: Layout,
    part: str,
) -> dict[str, tuple[float, float]]:
    """Measure -> (sum, count) of one part."""
    sums: dict[str, list[float]] = {"loss": [0.0, 0.0]}
    batches = validation_feed(data, part, model, rows, layout)
    # One batch ahead, so that the device never waits for the sums.
    found = ((batch, eval_step(params, batch)) for batch in batches)
    ahead = itertools.chain(found, [None])
    for number, (one, _) in enumerate(itertools.pairwise(ahead)):
        batch, pairs = cast(tuple[Batch, Measures], one)
        if math.isnan(float(pairs["loss"][0])):
            where = f"validation batch {number}{f' of {part}' if part else ''}"
            where += _place(params, batch, model, layout)
            raise NotANumber(f"the loss of {where} is not a number")
        for name, pair in pairs.items():
            held = sums.setdefault(name, [0.0, 0.0])
            held[:] = (a + float(b) for a, b in zip(held, pair, strict=True))
    return {name: (total, count) for name, (total, count) in sums.items()}


def _place(params: Params, batch: Batch, model: Model, layout: Layout) -> str:
    """Where the first loss that is not a number stands in a batch, as far as its model tells."""
    bad = make_nan_finder(model, layout)(params, batch)
    if bad is None or not np.any(bad):
        return ""
    place = np.argwhere(bad)[0]
    names = ("row", "position")
    return "".join(f", {name} {at}" for name, at in zip(names, place, strict=False))
