"""What formulas of whole models are made from: sizes, embedding and head, reports, parameters."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gam_jax.layers import InOrder, Layer, Pattern, Stack
from gam_jax.layers.base import known, statistics
from gam_jax.models import LanguageModel, Model
from gam_jax.ops.cross_entropy import blocks
from gam_jax.params import Param, codings, rule_specs, shard_dims, shardings
from gam_jax.traffic import levels
from gam_jax.traffic.gathered import loops_of
from gam_jax.traffic.layers import FLOAT, Sizes, added_last, gathers, layer_traffic
from sharding.layout import Layout
from sharding.messages import Message
from sharding.overlap import RING, TWO_WAY
from sharding.quantised import Bits


def sizes_of(model: Any, layout: Layout, rows: int, tokens: int) -> Sizes:
    mesh = layout.mesh.shape
    return Sizes(
        rows=rows // layout.row_parts,
        tokens=tokens // mesh["seq"],
        width=model.width,
        itemsize=itemsize_of(model),
        seq=mesh["seq"],
        tensor=mesh["tensor"],
        split=layout.axes.residual is not None,
        again=False,
        # What is kept beside shards leaves such gathers out.
        enter_again=bool(layout.layer_axes or layout.bits.weights),
        expert=mesh["expert"],
        packed=getattr(model, "packed", False),
        rings={None: 0, RING: 1, TWO_WAY: 2}[layout.axes.overlap],
    )


def in_streams(model: Any, layout: Layout, sizes: Sizes) -> Sizes:
    """Sizes of a device as the blocks know them, to which parallel streams are rows."""
    streams = getattr(model, "streams", 1)
    rows = sizes.rows * streams // layout.mesh.shape["stream"]
    return dataclasses.replace(sizes, rows=rows, streams=streams > 1)


def itemsize_of(model: Any) -> int:
    """Bytes of a number of the arithmetic."""
    return jnp.dtype(getattr(model, "dtype", "float32")).itemsize


def outside(model: LanguageModel, sizes: Sizes, most: int) -> Iterator[Message]:
    """Embedding, final norm, head and loss; the embedding is looked up in float32.

    The loss is that of blocks of at most so many tokens, one after another.
    """
    stream32 = sizes.stream // sizes.itemsize * FLOAT
    count, tokens = blocks(sizes.rows * sizes.tokens, most)
    yield sizes.over_tensor("all_reduce", tokens * FLOAT, 3 * count)  # the loss
    if not sizes.split:
        yield sizes.over_tensor("all_reduce", stream32)  # rows of the embedding
        yield sizes.over_tensor("all_reduce", sizes.stream)  # the gradient by the last output
        return
    yield sizes.over_tensor("reduce_scatter", stream32)
    yield gathers(stream32, sizes)
    yield gathers(sizes.stream, sizes)
    yield sizes.over_tensor("reduce_scatter", sizes.stream)
    yield from layer_traffic(model.norm, sizes)
    if model.context:
        yield sizes.over_tensor("all_reduce", model.context * sizes.width * FLOAT)


def padded(model: LanguageModel, sizes: Sizes) -> Iterator[Message]:
    """Of a padded vocabulary: the gradients of all rows, from those who have them."""
    vocab = known(model.vocab, "vocab", model)
    if vocab % sizes.tensor:
        rows = -(-vocab // sizes.tensor) * sizes.width * FLOAT
        yield sizes.over_tensor("all_gather", rows, 1 if model.tied else 2)


def reports(stack: Layer, layout: Layout) -> Iterator[Message]:
    """What routers have counted in each layer: two numbers for each expert, and six."""
    axes = layout.axes.sequences
    devices = math.prod(layout.mesh.shape[name] for name in axes)
    for found in statistics(stack.carry_table(1)).values():
        routed: Any = found
        *depth, _, experts = routed.counts.shape
        numbers = math.prod(depth) * (2 * experts + 6)
        yield Message("all_reduce", axes, devices, numbers * FLOAT)


def mixing(model: LanguageModel, layout: Layout, sizes: Sizes) -> Iterator[Message]:
    """Where parallel streams meet: two sums of [B, T, D], and the gradient by their input."""
    if model.streams == 1:
        return
    devices = layout.mesh.shape["stream"]
    tokens = sizes.rows * sizes.tokens // (sizes.tensor if sizes.split else 1)
    stream = tokens * sizes.width * sizes.itemsize

    def summed(size: int, count: int = 1) -> Message:
        return Message("all_reduce", ("stream",), devices, size, count)

    yield summed(stream, 2 + 1)  # into the aggregator and out of it; the gradient by the input
    yield summed(tokens * model.streams * FLOAT)  # the gradient by the weights
    if sizes.split:  # each device aggregates its own tokens: a part of the gradients
        width, streams = model.width, model.streams
        for count in (streams // devices * width**2, width, width * streams):
            yield sizes.over_tensor("all_reduce", count * sizes.itemsize)
        yield sizes.over_tensor("all_reduce", streams * FLOAT)


def between_streams(model: LanguageModel, layout: Layout) -> Iterator[Message]:
    """The gradient by parameters that parallel streams share."""
    devices = layout.mesh.shape["stream"]
    for path, size, dim, *_ in leaves_of(model, layout) if model.streams > 1 else ():
        if path[0] in model.trunk.inner.table():
            over = layout.gradient_axes if path[0] == "blocks" and dim else ()
            size //= math.prod(layout.mesh.shape[name] for name in over)
            yield Message("all_reduce", ("stream",), devices, size)


class Leaf(NamedTuple):
    """A parameter: its path, bytes of its gradient as the rules split it, ZeRO's dimension or 0.

    And the mesh axes that the rules split it over, whether it is float32 in any arithmetic, bytes
    of each of its numbers as it is stored, bits of those that are sent, 0 for as they are, and how
    many layers are coded one by one. Gradients are float32.
    """

    path: tuple[str, ...]
    size: int
    dim: int
    split: tuple[str, ...]
    precise: bool
    itemsize: int
    bits: Bits
    coded: int


@functools.lru_cache(maxsize=256)
def leaves_of(model: Model, layout: Layout) -> tuple[Leaf, ...]:
    """Every parameter; kept, since plans ask it of a mesh once for each way to take a batch."""
    table = model.stored_table()
    leaves, _ = jax.tree_util.tree_flatten_with_path(table, is_leaf=lambda x: isinstance(x, Param))
    specs = jax.tree.leaves(shardings(rule_specs(table, layout), layout))
    dims = jax.tree.leaves(shard_dims(table, layout))
    sent = jax.tree.leaves(codings(table, layout))
    found = []
    for (path, param), spec, dim, coding in zip(leaves, specs, dims, sent, strict=True):
        size = math.prod(spec.shard_shape(param.shape)) * FLOAT
        names = tuple(key.key for key in path)
        split, itemsize = tuple(filter(None, spec.spec)), jnp.dtype(param.dtype).itemsize
        coded = math.prod(spec.shard_shape(param.shape)[: coding.layers])
        leaf = Leaf(names, size, dim, split, param.precise, itemsize, coding.bits, coded)
        found.append(leaf)
    return tuple(found)


def gathered_in_parts(
    model: Any, layout: Layout, stack: Stack | None = None, sizes: Sizes | None = None
) -> Iterator[Message]:
    """Parameters in shards: gathered in each part of a batch, their gradients scattered.

    Those of a stack layer by layer, all others once, as of a model without one.
    """
    mesh, loops = layout.mesh.shape, []
    if stack is not None and sizes is not None:
        loops = [(loop.depth, set(added_last(loop, sizes))) for loop in loops_of(stack)]
    for path, size, dim, _, precise, _, bits, coded in leaves_of(model, layout):
        if not dim:
            continue
        layers, passes, itemsize = 1, 1, FLOAT
        if stack is not None and path[0] == "blocks":
            layers, name = layers_of(model, path[1:]), "/".join(path[1:])
            twice = sum(depth for depth, once in loops if name not in once)
            passes = layers // stack.depth * (stack.depth + twice)
            itemsize = FLOAT if precise else itemsize_of(model)
        count = size // layers // FLOAT
        sent, summed = in_bits(layout, count, coded // layers, itemsize, bits)
        yield from levels.gathers(sent, layout.layer_axes, mesh, passes)
        yield from levels.scatters(summed, layout.gradient_axes, mesh, layers, bits.gradients)


def in_bits(layout: Layout, count: int, coded: int, itemsize: int, bits: Bits) -> tuple[int, int]:
    """Bytes of a whole parameter of so many numbers as it is gathered, and of its gradient.

    Args:
      layout: the mesh.
      count: of numbers.
      coded: parts of it that are coded by themselves on each device.
      itemsize: bytes of a number that is sent as it is.
      bits: of those that are sent in few.
    """
    parts = math.prod(layout.mesh.shape[name] for name in layout.weight_axes)
    sent = coded * levels.as_sent(count // coded, itemsize, bits.weights, parts)
    return sent, count * (FLOAT if bits.gradients else itemsize)


def layers_of(model: Any, path: tuple[str, ...]) -> int:
    """How many equal layers a parameter of the blocks stands for."""
    layer, layers = model.block, model.depth
    while isinstance(layer, InOrder | Stack | Pattern):
        if isinstance(layer, Stack):
            layer, layers = layer.block, layers * layer.depth
        elif isinstance(layer, Pattern):
            layer = layer.runs
        else:
            layer, path = layer.named[path[0]], path[1:]
    return layers
