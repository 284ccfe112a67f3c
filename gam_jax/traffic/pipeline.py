"""What a training step sends whose layers lie in stages: tick by tick of its schedule's table.

Every stage goes forward in each forward tick, and forward and backward in each backward tick,
whether the task is its own or is masked. Embedding and head are counted for every stage, though
only the first and the last one need them.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from gam_jax.layers import Layer, LayerNorm, Stack
from gam_jax.layers.base import statistics
from gam_jax.models import ImageClassifier, LanguageModel
from gam_jax.models.base import on_stages, reported
from gam_jax.params import Param
from gam_jax.traffic import levels
from gam_jax.traffic.documents import places_traffic, row_numbers, starts_traffic
from gam_jax.traffic.layers import FLOAT, Sizes, added_last, layer_traffic
from gam_jax.traffic.models import (
    between_streams,
    in_bits,
    in_streams,
    itemsize_of,
    layers_of,
    leaves_of,
    mixing,
    outside,
    padded,
    reports,
    sizes_of,
)
from gam_jax.traffic.sizes import constants
from sharding.axes import Axes
from sharding.layout import Layout
from sharding.messages import Message
from sharding.pipeline.buffers import plan_of
from sharding.pipeline.tables import make_table


def staged(
    model: Any, layout: Layout, rows: int, tokens: int, accumulate: int
) -> Iterator[Message]:
    """All messages but those of the sums of weights and of gradients.

    Args:
      model: a language model or a classifier.
      layout: with several devices along `pipe`.
      rows: of a part of the batch.
      tokens: of a row.
      accumulate: parts of the batch.
    """
    parallel, pipe = layout.parallel, layout.stages
    table = make_table(parallel.schedule, pipe, accumulate, parallel.turns)
    tokens = model.patches if isinstance(model, ImageClassifier) else tokens
    sizes = sizes_of(model, layout, rows, tokens)
    inside = in_streams(model, layout, sizes)
    placed, layout = on_stages(model, layout)
    whole: Any = placed  # with a layer for each place
    depth, stack = whole.depth // (pipe * parallel.turns), _stack_of(model)
    ladder = depth if stack.ladder == model.depth else 0  # else it is seen layer by layer
    chunk = dataclasses.replace(stack, depth=depth, ladder=ladder)
    language = isinstance(model, LanguageModel)
    ahead = [*_forward(chunk, inside)]
    back = [*layer_traffic(chunk, inside), *reports(stack, layout)]
    if language:
        ahead += _entering(model, sizes)
        back += outside(model, sizes, model.loss_tokens(layout.axes.backend))
        back += mixing(model, layout, sizes)
        yield from between_streams(whole, layout)
        if model.packed and model.context:
            ahead.append(row_numbers(sizes))
            back.append(row_numbers(sizes))
        batch = math.prod(layout.mesh.shape[axis] for axis in layout.axes.batch)
        back.append(Message("all_reduce", layout.axes.batch, batch, FLOAT))  # the loss
        yield from padded(model, sizes)
    else:
        back += _around_images(model, layout, sizes)
    gathered, scattered = _layers_gathered(whole, layout, chunk, inside)
    state = list(_handed_on(model, inside, layout))
    for message in (*ahead, *gathered, *state):
        yield message.times(table.forward_ticks)
    for message in (*back, *scattered, *state):
        yield message.times(table.backward_ticks)
    yield from _shared_gathered(whole, layout)
    for size in _sums(model):
        yield Message("all_reduce", ("pipe",), pipe, size)


@dataclasses.dataclass(frozen=True)
class Stages:
    """What a schedule costs a run.

    Attributes:
      stages, parts, turns: of its table.
      ticks: in which stages go forward; they go backward in as many.
      idle: share of the time in which a stage has no task of its own, by the table.
      idle_by_formula: (p - 1) / (v m + p - 1).
      inputs_kept: places for inputs of chunks on each device, by the plan of the table.
      gradients_kept: places for gradients by them.
      input_bytes: of one of either.
    """

    stages: int
    parts: int
    turns: int
    ticks: int
    idle: float
    idle_by_formula: float
    inputs_kept: int
    gradients_kept: int
    input_bytes: int


def stages_of(model: Any, layout: Layout, rows: int, tokens: int, accumulate: int) -> Stages:
    """The schedule of a layout, and what it keeps; arguments as in `staged`."""
    parallel, pipe = layout.parallel, layout.stages
    table = make_table(parallel.schedule, pipe, accumulate, parallel.turns)
    plan = plan_of(table)
    tokens = model.patches if isinstance(model, ImageClassifier) else tokens
    sizes = in_streams(model, layout, sizes_of(model, layout, rows, tokens))
    return Stages(
        stages=pipe,
        parts=accumulate,
        turns=parallel.turns,
        ticks=table.forward_ticks,
        idle=table.idle_share(),
        idle_by_formula=(pipe - 1) / (parallel.turns * accumulate + pipe - 1),
        inputs_kept=max(plan.inputs, 1),
        gradients_kept=max(plan.gradients, 1),
        input_bytes=sum(
            message.size for message in _handed_on(model, sizes, on_stages(model, layout)[1])
        ),
    )


def _stack_of(model: Any) -> Stack:
    """The layers of a model, with what parallel streams differ in."""
    if isinstance(model, LanguageModel):
        trunk: Any = model.trunk.varied
        return trunk.stack
    return model.stack


def _forward(stack: Stack, sizes: Sizes) -> Iterator[Message]:
    """What layers send on the way forward alone: what running all of it again adds to a pass."""
    plain = dataclasses.replace(sizes, again=False, enter_again=False, leave_again=False)
    again = dataclasses.replace(plain, again=True, enter_again=True, leave_again=True)
    once, twice = (_counts(layer_traffic(stack.block, own)) for own in (plain, again))
    for message, count in twice.items():
        if more := count - once[message]:
            yield message.times(more * stack.depth)
    for message in constants(stack.block, plain):
        yield message.times(stack.depth)
    if sizes.packed and sizes.seq > 1:
        for told in (starts_traffic, places_traffic):
            for message in told(stack.block, plain):
                yield message.times(stack.depth)
    for found in statistics(stack.carry_table(sizes.rows)).values() if sizes.seq > 1 else ():
        routed: Any = found  # what each layer has counted of all tokens is handed on
        *layers, _, experts = routed.counts.shape
        yield sizes.over_seq(
            "all_reduce", sizes.rows * (2 * experts + 4) * FLOAT, math.prod(layers)
        )


def _counts(messages: Iterable[Message]) -> collections.Counter[Message]:
    counts: collections.Counter[Message] = collections.Counter()
    for message in messages:
        counts[dataclasses.replace(message, count=1)] += message.count
    return counts


def _entering(model: LanguageModel, sizes: Sizes) -> Iterator[Message]:
    """Rows of the embedding, from the devices that have them."""
    stream = sizes.stream // sizes.itemsize * FLOAT
    yield sizes.over_tensor("reduce_scatter" if sizes.split else "all_reduce", stream)


def _around_images(model: ImageClassifier, layout: Layout, sizes: Sizes) -> Iterator[Message]:
    """Loss, images that are classified rightly and weights; patches and mean of split tokens."""
    devices = math.prod(layout.mesh.shape[name] for name in layout.axes.rows)
    yield Message("all_reduce", layout.axes.rows, devices, FLOAT, 3)
    if sizes.split:
        whole = sizes.rows * model.patches * model.width * FLOAT
        yield sizes.over_tensor("all_reduce", whole)  # the gradient by the patches
        yield sizes.over_tensor("all_reduce", sizes.rows * model.width * FLOAT)  # the mean
        yield from layer_traffic(LayerNorm(model.width), sizes)


def _handed_on(model: Any, sizes: Sizes, layout: Layout) -> Iterator[Message]:
    """The stream, and what layers have counted so far; after these, room for a chunk's rows."""
    pipe, unlike = layout.stages, layout.axes.layers
    stack = _stack_of(model)
    stack = dataclasses.replace(stack, depth=model.depth + max(unlike, default=0))
    held = sizes.stream // (sizes.tensor if sizes.split else 1)
    for _ in range(2 if stack.ladder else 1):  # an update that is on its way, too
        yield Message("permute", ("pipe",), pipe, held)
    for found in statistics(stack.carry_table(sizes.rows)).values():
        for param in jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, Param)):
            size = math.prod(param.shape) * jnp.dtype(param.dtype).itemsize
            yield Message("permute", ("pipe",), pipe, size)


@functools.lru_cache(maxsize=64)
def _sums(model: Any) -> tuple[int, ...]:
    """Bytes of each sum and count that the last stage gives to all."""
    found = [FLOAT]  # the loss; its count is known
    if isinstance(model, ImageClassifier):
        found += [FLOAT, FLOAT]
    table = model.stack.carry_table(1)

    def measured() -> Any:
        carry = jax.tree.map(
            lambda p: jnp.zeros(p.shape, p.dtype), table, is_leaf=lambda x: isinstance(x, Param)
        )
        return reported(carry, Axes())[1]

    if statistics(table):
        found.append(FLOAT)  # the penalty
    for pair in jax.eval_shape(measured).values():
        found += [math.prod(x.shape) * FLOAT for x in pair]
    return tuple(found)


def _layers_gathered(
    model: Any, layout: Layout, stack: Layer, sizes: Sizes
) -> tuple[list[Message], list[Message]]:
    """Parameters of a chunk in shards: in a forward tick, and in a backward one."""
    ahead: list[Message] = []
    back: list[Message] = []
    mesh, chunks = layout.mesh.shape, layout.stages * layout.parallel.turns
    once = set(added_last(stack, sizes))
    for path, size, dim, _, precise, _, bits, coded in leaves_of(model, layout):
        if not dim or path[0] != "blocks":
            continue
        every = layers_of(model, path[1:])
        layers, own = every // chunks, every // layout.stages
        passes = 1 if "/".join(path[1:]) in once else 2
        itemsize = FLOAT if precise else itemsize_of(model)
        sent, summed = in_bits(layout, size // own // FLOAT, coded // own, itemsize, bits)
        ahead += levels.gathers(sent, layout.layer_axes, mesh, layers)
        back += levels.gathers(sent, layout.layer_axes, mesh, passes * layers)
        back += levels.scatters(summed, layout.gradient_axes, mesh, layers, bits.gradients)
    return ahead, back


def _shared_gathered(model: Any, layout: Layout) -> Iterator[Message]:
    """All other parameters in shards: gathered once a step, and their gradients scattered."""
    mesh = layout.mesh.shape
    for path, size, dim, _, _, _, bits, coded in leaves_of(model, layout):
        if dim and path[0] != "blocks":
            sent, summed = in_bits(layout, size // FLOAT, coded, FLOAT, bits)
            yield from levels.gathers(sent, layout.layer_axes, mesh)
            yield from levels.scatters(summed, layout.gradient_axes, mesh, 1, bits.gradients)
