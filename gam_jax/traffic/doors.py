"""Products that stand at the door of a layer, next to a gather or a scatter of the residual stream.

With tokens split over `tensor` these may go along with the messages, see `sharding.overlap`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Iterator

from gam_jax.layers import (
    GAM,
    MLP,
    Attention,
    Bidirectional,
    FusedDelta,
    LatentAttention,
    Layer,
    Linear,
    LinearMemory,
    Mamba,
    Mamba2,
    MinimalRNN,
    Mixed,
    MoE,
    Pattern,
    Shallow,
    SoftMixture,
    Stack,
)
from gam_jax.layers.base import layers_in
from gam_jax.models import LanguageModel, Model
from gam_jax.params import Param
from gam_jax.traffic.models import sizes_of
from gam_jax.traffic.sizes import Sizes
from sharding import cost
from sharding.layout import Layout
from sharding.rules import DEFAULT_RULES

MAPS: dict[type[Layer], tuple[tuple[str, ...], tuple[str, ...]]] = {
    MLP: (("w_in", "w_gate"), ("w_out",)),
    Linear: (("weight",), ()),
    Attention: (("query", "key", "value", "gate"), ("out",)),
    LatentAttention: (("query",), ("out",)),
    GAM: (("gate",), ()),
    LinearMemory: (("w_qkv",), ("w_out",)),
    FusedDelta: (("w_qkv",), ("w_out",)),
    MinimalRNN: (("w_in",), ("w_out",)),
    Mamba: (("w_in",), ("w_out",)),
    Mamba2: (("w_zx", "w_bc", "w_dt"), ("w_out",)),
}
"""Layer -> the maps that its tokens meet as they enter, and those that they leave by."""


@dataclasses.dataclass(frozen=True)
class Door:
    """A product and the message beside it, in one pass forward of one part of the batch.

    Attributes:
      layer: the class of the layer.
      way: "in", a gather and then products; or "out", a product and then a scatter.
      flops: of the products, on one device.
      sent: bytes that a device sends.
      count: how many such there are.
    """

    layer: str
    way: str
    flops: int
    sent: int
    count: int


def doors(model: Model, layout: Layout, rows: int, tokens: int) -> list[Door]:
    """Of all layers of a model; equal ones together.

    Backward each comes again as its transpose, with as many operations and bytes.

    Args:
      model: fitted to its data.
      layout: with tokens of the residual stream split over `tensor`.
      rows: of a part of the batch, on all devices.
      tokens: of each.
    """
    sizes = sizes_of(model, layout, rows, tokens)
    trunk = model.trunk.varied.stack if isinstance(model, LanguageModel) else model.stack  # type: ignore[attr-defined]
    found: collections.Counter[Door] = collections.Counter()
    for door in _doors(trunk, sizes):
        found[dataclasses.replace(door, count=1)] += door.count
    return [dataclasses.replace(door, count=count) for door, count in found.items()]


@functools.singledispatch
def _doors(layer: Layer, sizes: Sizes) -> Iterator[Door]:
    maps = MAPS.get(type(layer))
    if maps is None:
        for inner in layers_in(layer):
            yield from _doors(inner, sizes)
        return
    table = layer.table()
    for way, names in zip(("in", "out"), maps, strict=True):
        params = [table[name] for name in names if name in table]
        split = sum(math.prod(p.shape) // _parts(p, sizes) for p in params)
        width = sizes.width
        if way == "in" and getattr(layer, "query_latent", 0):
            width = layer.query_latent  # type: ignore[attr-defined]
        whole = sizes.rows * sizes.tokens * width * sizes.itemsize
        if params:
            flops = 2 * sizes.rows * sizes.tokens * split
            sent = cost.reduce_scatter(whole, sizes.tensor)
            yield Door(type(layer).__name__, way, flops, sent, 1)


def _parts(param: Param, sizes: Sizes) -> int:
    """On how many devices of `tensor` a parameter is split."""
    return sizes.tensor if any(DEFAULT_RULES[a] == "tensor" for a in param.axes if a) else 1


def _times(layer: Layer, sizes: Sizes, count: int) -> Iterator[Door]:
    for door in _doors(layer, sizes):
        yield dataclasses.replace(door, count=door.count * count)


@_doors.register
def _(layer: Stack, sizes: Sizes) -> Iterator[Door]:
    yield from _times(layer.block, sizes, layer.depth)


@_doors.register
def _(layer: SoftMixture, sizes: Sizes) -> Iterator[Door]:
    yield from _times(layer.inner, sizes, layer.experts)


@_doors.register
def _(layer: Mixed, sizes: Sizes) -> Iterator[Door]:
    own = dataclasses.replace(sizes, width=sizes.width // layer.share)
    found = [[*_doors(option, own)] for option in layer.options]
    if layer.drawn:
        found = [max(found, key=lambda doors: sum(door.flops * door.count for door in doors))]
    for doors in found:
        yield from doors


@_doors.register
def _(layer: Shallow, sizes: Sizes) -> Iterator[Door]:
    yield from _times(layer.block, sizes, layer.depth)


@_doors.register
def _(layer: Bidirectional, sizes: Sizes) -> Iterator[Door]:
    yield from _times(layer.inner, sizes, 2)


@_doors.register
def _(layer: Pattern, sizes: Sizes) -> Iterator[Door]:
    yield from _doors(layer.runs, sizes)


@_doors.register
def _(layer: MoE, sizes: Sizes) -> Iterator[Door]:
    yield from ()  # the feed-forward that it holds is not called as it is alone
