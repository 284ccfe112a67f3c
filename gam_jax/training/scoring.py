"""How well a model does on validation data."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

from gam_jax.data.base import Dataset
from gam_jax.models.base import Model
from gam_jax.params import Params
from gam_jax.training.batches import validation_feed
from sharding.errors import UserError
from sharding.layout import Layout


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
    pending: list[Any] = []
    for found in itertools.chain((eval_step(params, b) for b in batches), [None]):
        if pending:
            for name, pair in pending.pop().items():
                held = sums.setdefault(name, [0.0, 0.0])
                held[:] = (a + float(b) for a, b in zip(held, pair, strict=True))
        if found is not None:
            pending.append(found)
    return {name: (total, count) for name, (total, count) in sums.items()}
