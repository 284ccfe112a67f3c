"""A language model as what its blocks stand between, for stages of a pipeline."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import Array

from gam_jax.layers.ladder import Stream
from gam_jax.models.base import Batch, Measures, Parts, Span
from gam_jax.models.trunk import Trunk
from gam_jax.params import Params
from sharding.axes import Axes

if TYPE_CHECKING:
    from gam_jax.models.language import LanguageModel


def parts(model: LanguageModel) -> Parts:
    """Embedding; blocks; norm, head and loss, of a model without parallel streams."""
    trunk = Trunk(model.stack, model.norm)

    def keys(key: Array | None) -> Any:
        return (None, None) if key is None else jax.random.split(key)

    def first(params: Params, batch: Batch, axes: Axes, key: Array | None) -> Stream:
        tokens, given = batch["inputs"], batch.get("starts")
        x, _ = model.embedded(params, tokens, None, axes, key=keys(key)[0], starts=given)
        return trunk.stack.begun(x)

    def layers(
        blocks: Params,
        x: Stream,
        batch: Batch,
        axes: Axes,
        key: Array | None,
        span: Span,
    ) -> tuple[Stream, Any]:
        key, given = keys(key)[1], batch.get("starts")
        return trunk.run(blocks, x, None, axes, key=key, starts=given, **span._asdict())

    def last(
        params: Params, x: Stream, carry: Any, batch: Batch, axes: Axes
    ) -> tuple[Array, Array | float, Measures]:
        hidden = model.scaled(trunk.normed(params, x, axes))
        return model.told(params, hidden, carry, batch, axes)

    def scored(params: Params, x: Stream, batch: Batch, axes: Axes) -> Measures:
        return model.hits(params, model.scaled(trunk.normed(params, x, axes)), batch, axes)

    def deepened(depth: int) -> LanguageModel:
        more = depth - model.depth if model.ladder else 0  # the same block is the ladder's first
        return dataclasses.replace(model, depth=depth, ladder=model.ladder + more)

    return Parts("blocks", model.depth, model.own, first, layers, last, deepened, scored)
