"""Whether a config.json gives back the model that it was written of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from gam_jax.config import flatten, to_dict
from gam_jax.convert import patterns
from gam_jax.convert.fields import shown
from gam_jax.layers import (
    MLP,
    Attention,
    LatentAttention,
    Layer,
    LinearMemory,
    Mamba,
    Mamba2,
    MoE,
)
from gam_jax.layers.base import INHERITED, as_usual
from gam_jax.models.language import LanguageModel
from sharding.errors import UserError

OF_TRAINING = ("dropout", "init", "dtype", "param_dtype", "packed")
"""Fields of a model that say how it is trained, not what it computes."""
OF_STREAMS = ("prefix", "smoothing")
"""Fields that mean nothing where there is one stream."""


def check_same(
    official: str,
    read: Callable[[Any], LanguageModel],
    model: LanguageModel,
    config: Any,
    library: str = "transformers",
) -> None:
    """A UserError that names the first field of the model that what was written does not give back.

    Args:
      official: the class that is to read it.
      read: what was written, such as config.json -> model.
      model: that was written.
      config: as what.
      library: that has the class.
    """
    try:
        again = read(config)
    except (UserError, ValueError) as error:
        raise UserError(f"{official} of {library} has no such sizes: {error}") from error
    ours, theirs = (flatten(to_dict(_bare(as_usual(one)))) for one in (model, again))
    for name in {**theirs, **ours}:
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"{official} of {library} has {shown(name, theirs.get(name))} where this model "
                f"has {shown(name, ours.get(name))}"
            )


def _bare(model: LanguageModel) -> LanguageModel:
    """The function alone: nothing of training, and each size told in one way."""
    usual = {field.name: field.default for field in dataclasses.fields(LanguageModel)}
    return dataclasses.replace(
        model,
        **patterns.in_order([_plain(block, model.width) for block in patterns.blocks_of(model)]),
        norm=_plain(model.norm, model.width),
        **{
            name: usual[name]
            for name in (*OF_TRAINING, *(OF_STREAMS if model.streams == 1 else ()))
        },
    )


def _plain(layer: Any, width: int) -> Any:
    if not isinstance(layer, Layer):
        return layer
    fields = [field.name for field in dataclasses.fields(layer)]  # type: ignore[arg-type]
    changed = {name: _plain(getattr(layer, name), width) for name in fields}
    changed |= dict.fromkeys(changed.keys() & set(INHERITED))  # the model gives them again
    if isinstance(layer, Attention):
        changed |= {"kv_heads": layer.groups, "head_size": layer.size}
        changed["scale"] = layer.scale or layer.size**-0.5
        changed["context"] = 1 if layer.window else layer.context
    if isinstance(layer, LatentAttention):
        changed["value_size"] = layer.value_size or layer.head_size
        changed["scale"] = layer.rule.scale
    if isinstance(layer, MLP):
        changed |= {"hidden": layer.hidden or layer.expansion * width, "expansion": 1}
    if isinstance(layer, Mamba):
        changed["rank"] = layer.steps
    if isinstance(layer, Mamba2):
        changed["inner"] = layer.heads * layer.head
        changed["eps"] = layer.eps if layer.norm != "none" else 0.0
    if isinstance(layer, LinearMemory):
        recipe = layer.recipe
        changed |= {"key_heads": layer.groups, "key_width": layer.keys, "kernel": recipe.kernel}
        changed |= {"value_width": layer.values, "feature": recipe.feature}
        changed["gated"] = recipe.gate != "none"
    if isinstance(layer, MoE) and layer.shared:
        changed |= {"shared": 1, "shared_hidden": layer.shared_ffn.hidden}
    if isinstance(layer, MoE):
        changed["capacity"] = (
            type(layer.capacity)() if not layer.capacity.factor else layer.capacity
        )
        if layer.router.chosen_groups in (0, layer.router.groups):  # all experts are one group
            one_group = {"groups": 1, "chosen_groups": 0, "group_best": 2}
            changed["router"] = dataclasses.replace(layer.router, **one_group)
    return type(layer)(**changed)
