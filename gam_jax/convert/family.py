"""What a class of Hugging Face transformers must say to be read and written here."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from gam_jax.convert.fields import Fields
from gam_jax.convert.folder import Reader
from gam_jax.layers import Layer, RMSNorm
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params
from sharding.errors import UserError

UNLIKE = "it cannot be written as that"
"""How it ends what is said of a family that has other layers."""

Config = Mapping[str, Any]
"""What a config.json holds."""

LayerType = TypeVar("LayerType", bound=Layer)


Apart = tuple[
    Callable[[LanguageModel, Reader], Params],
    Callable[[LanguageModel, Params], dict[str, np.ndarray]],
]
"""(model, the whole folder) -> entries of the parameters; and the inverse."""


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
      read: (model, one block of a folder) -> parameters of a block.
      write: the inverse of `read`.
      apart: both of what stands outside the blocks besides; None for nothing.
      join: (model, parameters of each block) -> those of `model.stack`.
      split: the inverse of `join`.
      layers: how many blocks config.json counts.
      kind: the model_type that config.json must name.
      spare: names of arrays of the folder that the model does without.
    """

    model: Callable[[Config], LanguageModel]
    config: Callable[[LanguageModel], dict[str, Any]]
    embedding: str
    norm: str
    blocks: str
    read: Callable[[LanguageModel, Reader], Params]
    write: Callable[[LanguageModel, Params], dict[str, np.ndarray]]
    apart: Apart | None = None
    join: Callable[[LanguageModel, Sequence[Params]], Params] = join_equal
    split: Callable[[LanguageModel, Params], list[Params]] = split_equal
    layers: Callable[[LanguageModel], int] = operator.attrgetter("depth")
    kind: str = ""
    spare: Callable[[Reader], Iterable[str]] = lambda reader: ()


def refuse(config: Fields, **only: Any) -> None:
    """A UserError for each field that is given and is not the one value that is known here."""
    for name, value in only.items():
        config.only(name, value)


def one(layer: Any, cls: type[LayerType], official: str) -> LayerType:
    """`layer`, or a UserError if it is not of that class."""
    if not isinstance(layer, cls):
        raise UserError(
            f"{official} of transformers has a {cls.__name__} where this model has a "
            f"{type(layer).__name__}: {UNLIKE}"
        )
    return layer


def check_plain(
    model: LanguageModel, official: str, scaled: bool = False, capped: bool = False
) -> None:
    """A UserError for learned positions, a last norm that is no RMSNorm, streams or constants.

    Args:
      model: what is written.
      official: the class of transformers.
      scaled: whether embedding and logits may have scales.
      capped: whether logits may have a cap.
    """
    if model.streams > 1:
        raise UserError(f"{official} has one stream and this model has {model.streams}")
    if model.logit_cap and not capped:
        raise UserError(
            f"{official} of transformers has no cap of logits and this model has "
            f"logit_cap={model.logit_cap:g}: {UNLIKE}"
        )
    scales = model.embedding_scale, model.logit_scale
    if model.context or not isinstance(model.norm, RMSNorm) or (not scaled and scales != (1, 1)):
        raise UserError(
            f"{official} of transformers has no learned positions, a last RMSNorm"
            f"{'' if scaled else ' and no scales'}: this model cannot be written as that"
        )
