"""A language model in the three parts that stages of a pipeline are made of."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import Array

from gam_jax.layers.ladder import Stream
from gam_jax.layers.parscale import ParScale
from gam_jax.models.base import Batch, Measures, Parts, Span
from gam_jax.models.trunk import Trunk
from gam_jax.params import Params
from sharding.axes import Axes

if TYPE_CHECKING:
    from gam_jax.models.language import LanguageModel

LAYERS = "blocks"
"""The name of what layers have: their parameters; of parallel streams also how they begin."""


def parts(model: LanguageModel) -> Parts:
    """Embedding; blocks; norm, head and loss. Parallel streams are rows of the stream between."""
    streams = model.trunk
    trunk: Any = streams.varied

    def keys(key: Array | None) -> Any:
        return (None, None) if key is None else jax.random.split(key)

    def own(params: Params, axes: Axes) -> Params:
        params = streams.shared(model.own(params, axes), axes)
        if streams.streams == 1:
            return params
        rest = {name: x for name, x in params.items() if name != "starts"}
        return {**rest, LAYERS: {LAYERS: params[LAYERS], "starts": params["starts"]}}

    def first(params: Params, batch: Batch, axes: Axes, key: Array | None) -> Stream:
        tokens, given = batch["inputs"], batch.get("starts")
        x, _ = model.embedded(params, tokens, None, axes, key=keys(key)[0], starts=given)
        return trunk.stack.begun(streams.as_rows(x, axes))

    def layers(
        blocks: Params,
        x: Stream,
        batch: Batch,
        axes: Axes,
        key: Array | None,
        span: Span,
    ) -> tuple[Stream, Any]:
        key, given, carry = keys(key)[1], batch.get("starts"), None
        if streams.streams > 1:
            some, rows = _of_depth(streams, span.depth), len(batch["inputs"])
            carry, given = some.begin(blocks["starts"], None, rows, given, axes)
            blocks = blocks[LAYERS]
        inside = streams.inside(axes)
        return trunk.run(blocks, x, carry, inside, key=key, starts=given, **span._asdict())

    def hidden(params: Params, x: Stream, axes: Axes) -> Array:
        rows = trunk.normed(params, x, streams.inside(axes))
        if streams.streams > 1:
            rows = streams.mixed(params["aggregator"], rows, axes)
        return model.scaled(rows)

    def last(
        params: Params, x: Stream, carry: Any, batch: Batch, axes: Axes
    ) -> tuple[Array, Array | float, Measures]:
        return model.told(params, hidden(params, x, axes), carry, batch, axes)

    def scored(params: Params, x: Stream, batch: Batch, axes: Axes) -> Measures:
        return model.hits(params, hidden(params, x, axes), batch, axes)

    def deepened(depth: int) -> LanguageModel:
        more = depth - model.depth if model.ladder else 0  # the same block is the ladder's first
        return dataclasses.replace(model, depth=depth, ladder=model.ladder + more)

    return Parts(LAYERS, model.depth, own, first, layers, last, deepened, scored)


def _of_depth(streams: ParScale, depth: int) -> ParScale:
    """The streams of so many blocks, as far as how they begin goes."""
    inner: Any = streams.inner
    stack = dataclasses.replace(inner.stack, depth=depth, ladder=0)
    return dataclasses.replace(streams, inner=Trunk(stack, inner.norm))
