"""Adapters put into a model, and merged into its matrices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import jax

from gam_jax.layers import Adapted, InOrder, Layer, Pattern, Stack
from gam_jax.layers.adapted import chosen, matrices, with_adapters
from gam_jax.models.base import Model
from gam_jax.nested import held, with_held
from gam_jax.params import Params, param_specs, shardings
from sharding.errors import UserError
from sharding.layout import Layout

ModelType = TypeVar("ModelType", bound=Model)

NAMES = "*/adapters/*"
"""What the names of adapters match, for `optimizer.only`."""


def adapted(
    model: ModelType, on: str, rank: int = 8, alpha: float = 16.0, rooted: bool = False
) -> ModelType:
    """The model with adapters in each of its blocks.

    Unlike blocks (of a `Pattern`, say) have their own, each by those patterns that match in it.

    Args:
      model: one that has a `block`.
      on: patterns of the names of matrices in a block, joined by commas.
      rank: see `layers.Adapted`.
      alpha: likewise.
      rooted: likewise.

    Raises:
      UserError: a model without blocks, or with adapters; a pattern that matches no matrix.
    """
    block = getattr(model, "block", None)
    if not isinstance(block, Layer):
        raise UserError(f"adapters need a model of blocks, and a {type(model).__name__} has none")
    if is_adapted(model):
        raise UserError("the model has adapters already: merge them first, see docs/adapters.md")
    names = {name for _, one in blocks(block) for name in matrices(one.table())}
    found = chosen(on, names)

    def into(layer: Layer) -> Layer:
        if layer.gathers:
            return with_held(layer, into)
        own = set(matrices(layer.table()))
        here = ",".join(pattern for pattern, matches in found.items() if own & {*matches})
        return Adapted(layer, rank, alpha, here, rooted) if here else layer

    return dataclasses.replace(model, block=into(block))  # type: ignore[call-arg]


def blocks(layer: Layer, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """The layers that stacks repeat, and what the names of their parameters begin with."""
    if isinstance(layer, Stack):
        yield from blocks(layer.block, prefix)
    elif isinstance(layer, Pattern):
        yield from blocks(layer.runs, prefix)
    elif isinstance(layer, InOrder):
        for name, inner in layer.named.items():
            yield from blocks(inner, f"{prefix}{name}/")
    else:
        yield prefix, layer


def adapters_of(config: Any) -> list[Adapted]:
    """The adapted layers in a model or a layer."""
    found = [config] if isinstance(config, Adapted) else []
    for inner in held(config):
        found += adapters_of(inner)
    return found


def is_adapted(config: Any) -> bool:
    """Whether there are adapters anywhere in a model or a layer."""
    return bool(adapters_of(config))


def plain(config: Any) -> Any:
    """A model or a layer without its adapters."""
    if isinstance(config, Adapted):
        return plain(config.inner)
    return with_held(config, plain)


def merged(
    model: ModelType, params: Params, layout: Layout | None = None
) -> tuple[ModelType, Params]:
    """The model without adapters, and its parameters with them added to their matrices.

    What it computes is what the adapted model does, but for rounding. A model without adapters
    comes back as it is, with its parameters.

    Args:
      model: with adapters.
      params: whole arrays; on a mesh where there is a layout.
      layout: where to leave them; None for wherever they come to lie.
    """
    if not is_adapted(model):
        return model, params
    own, table = cast(ModelType, plain(model)), model.table()
    placed = None if layout is None else shardings(param_specs(own.table(), layout), layout)
    return own, jax.jit(lambda params: with_adapters(table, params), out_shardings=placed)(params)
