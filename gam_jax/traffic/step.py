"""What a training step should send, by formula: layer by layer, from sizes alone.

Written from the design of each layer, not from its program, so that `experiments.audit` can hold
the one against the other. Collectives are those of the default rules, which split channels,
slots, hidden units and vocabulary alike.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gam_jax.layers import InOrder, Layer, LayerNorm, Pattern, Stack
from gam_jax.layers.base import known, statistics
from gam_jax.models import ImageClassifier, LanguageModel, Model
from gam_jax.ops.cross_entropy import block_size, blocks
from gam_jax.params import Param, rule_specs, shard_dims, shardings
from gam_jax.traffic.documents import knows_starts, row_numbers
from gam_jax.traffic.layers import FLOAT, Sizes, added_last, gathers, layer_traffic
from sharding.layout import Layout
from sharding.messages import Message


def step_traffic(
    model: Model, layout: Layout, rows: int, tokens: int, accumulate: int = 1
) -> list[Message]:
    """What each device sends in one training step, but for the optimizer's own few scalars.

    Args:
      model: fitted to its data.
      layout: the mesh, under the default table of rules.
      rows: sequences, or images, in the whole batch.
      tokens: tokens of each sequence; those of an image are its patches, which the model knows.
      accumulate: parts that it is taken in.

    Raises:
      TypeError: there are no formulas for this kind of model, see `has_formula`.
    """
    parts = MODEL_TRAFFIC[type(model)](model, layout, rows // accumulate, tokens)
    batch = math.prod(layout.mesh.shape[axis] for axis in layout.axes.batch)
    once = [Message("all_reduce", layout.axes.batch, batch, FLOAT), *_summed(model, layout)]
    return [message.times(accumulate) for message in parts] + once  # once: weights, gradients


def has_formula(model: Model, layout: Layout) -> bool:
    """Whether `step_traffic` knows this kind of model.

    Where tokens of packed rows are split, every layer needs a formula in `documents` too.
    """
    if type(model) not in MODEL_TRAFFIC:
        return False
    split = getattr(model, "packed", False) and layout.mesh.shape["seq"] > 1
    return not split or knows_starts(model.block)  # type: ignore[attr-defined]


def _sizes(model: Any, layout: Layout, rows: int, tokens: int) -> Sizes:
    mesh = layout.mesh.shape
    return Sizes(
        rows=rows // layout.row_parts,
        tokens=tokens // mesh["seq"],
        width=model.width,
        itemsize=_itemsize(model),
        seq=mesh["seq"],
        tensor=mesh["tensor"],
        split=layout.axes.residual is not None,
        again=False,
        enter_again=layout.shards_params,  # what is kept beside shards leaves such gathers out
        expert=mesh["expert"],
        packed=getattr(model, "packed", False),
    )


def _itemsize(model: Any) -> int:
    """Bytes of a number of the arithmetic."""
    return jnp.dtype(getattr(model, "dtype", "float32")).itemsize


def _language(model: LanguageModel, layout: Layout, rows: int, tokens: int) -> list[Message]:
    """A part of a batch of a language model."""
    mesh, sizes = layout.mesh.shape, _sizes(model, layout, rows, tokens)
    trunk: Any = model.trunk.varied
    streams = sizes.rows * model.streams // mesh["stream"]
    inside = dataclasses.replace(sizes, rows=streams, streams=model.streams > 1)
    most = block_size(layout.axes.backend)
    parts = [*layer_traffic(trunk.stack, inside), *_outside(model, sizes, most)]
    if model.packed and model.context:
        parts.append(row_numbers(sizes))  # of which documents begin, for learned positions
    parts += [*_mixing(model, layout, sizes), *_reports(trunk.stack, layout)]
    batch = math.prod(mesh[axis] for axis in layout.axes.batch)
    parts += [Message("all_reduce", layout.axes.batch, batch, FLOAT)]  # the loss
    return [*parts, *_gathered(model, layout, trunk.stack, inside)]


def _classifier(model: ImageClassifier, layout: Layout, rows: int, _: int) -> list[Message]:
    """A part of a batch of an image classifier: everything but the blocks is on every device."""
    mesh, sizes = layout.mesh.shape, _sizes(model, layout, rows, model.patches)
    parts = [*layer_traffic(model.stack, sizes), *_reports(model.stack, layout)]
    devices = math.prod(mesh[axis] for axis in layout.axes.rows)
    # The loss, the images that are classified rightly, and the weights.
    parts += [Message("all_reduce", layout.axes.rows, devices, FLOAT, 3)]
    if sizes.split:
        whole = sizes.rows * model.patches * model.width * FLOAT
        parts += [sizes.over_tensor("all_reduce", whole)]  # the gradient by the patches
        parts += [sizes.over_tensor("all_reduce", sizes.rows * model.width * FLOAT)]  # the mean
        parts += layer_traffic(LayerNorm(model.width), sizes)
    return [*parts, *_gathered(model, layout, model.stack, sizes)]


MODEL_TRAFFIC: dict[type, Callable[[Any, Layout, int, int], list[Message]]] = {
    LanguageModel: _language,
    ImageClassifier: _classifier,
}
"""Kind of model -> what a device sends for one part of a batch, given rows and tokens of it."""


def _outside(model: LanguageModel, sizes: Sizes, most: int) -> Iterator[Message]:
    """Embedding, final norm, head and loss; the embedding is looked up in float32.

    The loss is that of blocks of at most so many tokens, one after another.
    """
    stream32 = sizes.stream // sizes.itemsize * FLOAT
    count, tokens = blocks(sizes.rows * sizes.tokens, most)
    yield sizes.over_tensor("all_reduce", tokens * FLOAT, 3 * count)  # the loss
    vocab = known(model.vocab, "vocab", model)
    if vocab % sizes.tensor:  # it is padded: the gradients of all rows, from those who have them
        rows = -(-vocab // sizes.tensor) * sizes.width * FLOAT
        yield sizes.over_tensor("all_gather", rows, 1 if model.tied else 2)
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


def _reports(stack: Layer, layout: Layout) -> Iterator[Message]:
    """What routers have counted in each layer: two numbers for each expert, and six."""
    axes = layout.axes.sequences
    devices = math.prod(layout.mesh.shape[name] for name in axes)
    for found in statistics(stack.carry_table(1)).values():
        routed: Any = found
        *depth, _, experts = routed.counts.shape
        numbers = math.prod(depth) * (2 * experts + 6)
        yield Message("all_reduce", axes, devices, numbers * FLOAT)


def _mixing(model: LanguageModel, layout: Layout, sizes: Sizes) -> Iterator[Message]:
    """Where parallel streams meet: two sums of [B, T, D], and the gradient by what they share."""
    if model.streams == 1:
        return
    devices = layout.mesh.shape["stream"]
    tokens = sizes.rows * sizes.tokens // (sizes.tensor if sizes.split else 1)
    stream = tokens * sizes.width * sizes.itemsize

    def summed(size: int, count: int = 1) -> Message:
        return Message("all_reduce", ("stream",), devices, size, count)

    yield summed(stream, 2 + 1)  # into the aggregator and out of it; the gradient by the input
    yield summed(tokens * model.streams * FLOAT)  # the gradient by the weights
    for path, size, dim, *_ in _leaves(model, layout):
        if path[0] in model.trunk.inner.table():
            shards = path[0] == "blocks" and dim and layout.shards_params and layout.shard_axis
            yield summed(size // (layout.mesh.shape[shards] if shards else 1))
    if sizes.split:  # each device aggregates its own tokens: a part of the gradients
        width, streams = model.width, model.streams
        for count in (streams // devices * width**2, width, width * streams):
            yield sizes.over_tensor("all_reduce", count * sizes.itemsize)
        yield sizes.over_tensor("all_reduce", streams * FLOAT)


class Leaf(NamedTuple):
    """A parameter: its path, bytes of its gradient as the rules split it, ZeRO's dimension or 0.

    And the mesh axes that the rules split it over, whether it is float32 in any arithmetic, and
    bytes of each of its numbers as it is stored. Gradients are float32.
    """

    path: tuple[str, ...]
    size: int
    dim: int
    split: tuple[str, ...]
    precise: bool
    itemsize: int


def _leaves(model: Model, layout: Layout) -> Iterator[Leaf]:
    table = model.stored_table()
    leaves, _ = jax.tree_util.tree_flatten_with_path(table, is_leaf=lambda x: isinstance(x, Param))
    specs = jax.tree.leaves(shardings(rule_specs(table, layout), layout))
    dims = jax.tree.leaves(shard_dims(table, layout))
    for (path, param), spec, dim in zip(leaves, specs, dims, strict=True):
        size = math.prod(spec.shard_shape(param.shape)) * FLOAT
        names = tuple(key.key for key in path)
        split, itemsize = tuple(filter(None, spec.spec)), jnp.dtype(param.dtype).itemsize
        yield Leaf(names, size, dim, split, param.precise, itemsize)


def _gathered(model: Any, layout: Layout, stack: Layer, sizes: Sizes) -> Iterator[Message]:
    """Parameters in shards: gathered in each part of a batch, their gradients scattered."""
    axis = layout.shard_axis
    if axis is None or not layout.shards_params:
        return
    devices = layout.mesh.shape[axis]
    once = set(added_last(stack, sizes))
    for path, size, dim, _, precise, _ in _leaves(model, layout):
        if not dim:
            continue
        layers, passes = 1, 1
        if path[0] == "blocks":
            layers = _layers(model, path[1:])
            passes = 1 if "/".join(path[1:]) in once else 2
            itemsize = FLOAT if precise else _itemsize(model)
            size = size // layers * itemsize // FLOAT
        yield Message("all_gather", (axis,), devices, size // devices, passes * layers)
        yield Message("reduce_scatter", (axis,), devices, size, layers)


def _layers(model: Any, path: tuple[str, ...]) -> int:
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


def _summed(model: Model, layout: Layout) -> list[Message]:
    """Gradients summed over the batch's axes once a step, and new parameters given to all."""
    axis, mesh = layout.shard_axis, layout.mesh.shape
    found = []

    def add(collective: str, over: tuple[str, ...], size: int) -> None:
        devices = math.prod(mesh[name] for name in over)
        found.append(Message(collective, over, devices, size))

    for _, size, dim, split, _, itemsize in _leaves(model, layout):
        axes = tuple(name for name in layout.axes.batch if name not in split)
        if axis is None or not dim:
            add("all_reduce", axes, size)
            continue
        part = size // mesh[axis]
        add("all_reduce", tuple(name for name in axes if name != axis), part)
        if not layout.shards_params:
            add("reduce_scatter", (axis,), size)
            add("all_gather", (axis,), part // FLOAT * itemsize)
    return found
