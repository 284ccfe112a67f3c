"""What a class of Hugging Face transformers must say to be read and written here."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from gam_jax.layers import Layer, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params
from sharding.errors import UserError

Config = Mapping[str, Any]
"""What a config.json holds."""

Tensors = Mapping[str, np.ndarray]
"""Arrays of one block by the names they have inside it."""

LayerType = TypeVar("LayerType", bound=Layer)


Apart = tuple[
    Callable[[LanguageModel, Tensors], Params],
    Callable[[LanguageModel, Params], dict[str, np.ndarray]],
]
"""(model, tensors of the whole folder) -> entries of the parameters; and the inverse."""


def join_equal(model: LanguageModel, blocks: Sequence[Params]) -> Params:
    """Equal blocks' parameters, stacked."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *blocks)


def split_equal(model: LanguageModel, params: Params) -> list[Params]:
    """The inverse of `join_equal`."""
    return [jax.tree.map(lambda x, i=i: x[i], params) for i in range(model.depth)]


class Family(NamedTuple):
    """How a class of transformers becomes a model here, and back.

    Attributes:
      model: config.json -> model; a UserError where this project cannot express it.
      config: model -> config.json; a UserError where transformers cannot express the model.
      embedding, norm, blocks: names of the embedding, the last norm and, before a number, blocks.
      read: (model, tensors of a block) -> parameters of a block.
      write: the inverse of `read`.
      apart: both of what stands outside the blocks besides; None for nothing.
      join: (model, parameters of each block) -> those of `model.stack`.
      split: the inverse of `join`.
      layers: how many blocks config.json counts.
    """

    model: Callable[[Config], LanguageModel]
    config: Callable[[LanguageModel], dict[str, Any]]
    embedding: str
    norm: str
    blocks: str
    read: Callable[[LanguageModel, Tensors], Params]
    write: Callable[[LanguageModel, Params], dict[str, np.ndarray]]
    apart: Apart | None = None
    join: Callable[[LanguageModel, Sequence[Params]], Params] = join_equal
    split: Callable[[LanguageModel, Params], list[Params]] = split_equal
    layers: Callable[[LanguageModel], int] = operator.attrgetter("depth")


def refuse(config: Config, **only: Any) -> None:
    """A UserError for each field that is given and is not the one value that is known here."""
    for name, value in only.items():
        found = config.get(name)
        if found not in (None, value):
            raise UserError(
                f"config.json: {name}={found!r} of model_type {config.get('model_type')} is not "
                f"known here, {value!r} alone"
            )


def one(layer: Any, cls: type[LayerType], official: str) -> LayerType:
    """`layer`, or a UserError if it is not of that class."""
    if not isinstance(layer, cls):
        raise UserError(
            f"{official} of transformers has a {cls.__name__} where this model has a "
            f"{type(layer).__name__}: it cannot be written as that"
        )
    return layer


def check_plain(model: LanguageModel, official: str, scaled: bool = False) -> None:
    """A UserError for learned positions, a last norm that is no RMSNorm, or (unscaled) scales."""
    if model.streams > 1:
        raise UserError(f"{official} has one stream and this model has {model.streams}")
    scales = model.embedding_scale, model.logit_scale
    if model.context or not isinstance(model.norm, RMSNorm) or (not scaled and scales != (1, 1)):
        raise UserError(
            f"{official} of transformers has no learned positions, a last RMSNorm"
            f"{'' if scaled else ' and no scales'}: this model cannot be written as that"
        )


def rotary_base(config: Config) -> float:
    """rope_theta, wherever this version of transformers wrote it.

    Raises:
      UserError: positions that are scaled.
    """
    given = rope(config)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind != "default":
        raise UserError(
            f"config.json: rope_type={kind!r} of model_type {config.get('model_type')} is not "
            f"known here: rotary positions without scaling alone"
        )
    return float(given.get("rope_theta") or config.get("rope_theta", 10_000.0))


def rope(config: Config) -> Mapping[str, Any]:
    """What config.json says of rotary positions, wherever this version of transformers did."""
    return config.get("rope_parameters") or config.get("rope_scaling") or {}
