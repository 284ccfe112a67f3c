"""Formulas of norms, and of layers that are made of others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax

from gam_jax.layers import (
    Adapted,
    Block,
    Chunked,
    FalconH1,
    InOrder,
    Layer,
    LayerNorm,
    Mixed,
    Nested,
    Pattern,
    Residual,
    RMSNorm,
    Shallow,
    SoftMixture,
    Stack,
)
from gam_jax.layers.adapted import ADAPTERS, Factor
from gam_jax.traffic.documents import places_traffic, starts_traffic
from gam_jax.traffic.gathered import loops_of
from gam_jax.traffic.sizes import FLOAT, Sizes, constants, layer_traffic, sums
from gam_jax.units import leaf
from sharding.messages import Message
from sharding.rules import DEFAULT_RULES


@layer_traffic.register
def _(layer: LayerNorm, sizes: Sizes) -> Iterator[Message]:
    if sizes.split:  # each device normalises its own tokens, in float32: a part of the gradients
        yield sizes.over_tensor("all_reduce", sizes.width * FLOAT, 2)


@layer_traffic.register
def _(layer: RMSNorm, sizes: Sizes) -> Iterator[Message]:
    if sizes.split:
        yield sizes.over_tensor("all_reduce", sizes.width * FLOAT)


@layer_traffic.register
def _(layer: Block, sizes: Sizes) -> Iterator[Message]:
    steps = list(layer.steps.values())
    for place, names in enumerate(steps):
        read = place + 1 < len(steps) and not sizes.early  # by the next step
        followed = layer.norms != "pre" or read  # by a norm, which looks at it
        leave_again = sizes.leave_again or (sizes.again and followed)
        own = dataclasses.replace(sizes, leave_again=leave_again, early=False)
        for part in (layer.norm, *(getattr(layer, name) for name in names)):
            yield from layer_traffic(part, own)
        if layer.norms == "sandwich":
            yield from layer_traffic(layer.norm, own)


@layer_traffic.register
def _(layer: Residual, sizes: Sizes) -> Iterator[Message]:
    yield from layer_traffic(layer.norm, sizes)
    yield from layer_traffic(layer.inner, sizes)


@layer_traffic.register
def _(layer: FalconH1, sizes: Sizes) -> Iterator[Message]:
    yield from layer_traffic(layer.attention, sizes)
    yield from layer_traffic(layer.ssm, sizes)


@layer_traffic.register
def _(layer: Adapted, sizes: Sizes) -> Iterator[Message]:
    yield from layer_traffic(layer.inner, sizes)
    table: Any = layer.table()
    leaves = jax.tree.leaves(table[ADAPTERS], is_leaf=lambda leaf: isinstance(leaf, Factor))
    split = [any(DEFAULT_RULES[axis] == "tensor" for axis in p.axes if axis) for p in leaves]
    for place, param in enumerate(leaves):
        if split[place ^ 1]:  # its partner is, so each device uses all of it for a part
            held = sizes.expert if "expert" in param.axes else 1
            yield from sums(sizes, math.prod(param.shape) // held * FLOAT)


@layer_traffic.register
def _(layer: SoftMixture, sizes: Sizes) -> Iterator[Message]:
    weighed = dataclasses.replace(sizes, leave_again=sizes.again)
    for message in layer_traffic(layer.inner, weighed):
        yield message.times(layer.experts)
    if sizes.split:  # each device weighs its own tokens
        yield sizes.over_tensor("all_reduce", sizes.width * layer.experts * FLOAT)


@constants.register
def _(layer: SoftMixture, sizes: Sizes) -> Iterator[Message]:
    for message in constants(layer.inner, sizes):
        yield message.times(layer.experts)


@layer_traffic.register
def _(layer: Mixed, sizes: Sizes) -> Iterator[Message]:
    """Of a drawn option, as an audit counts branches, that which sends most: once forward, once
    forward and backward where it is run again, and forward for each other gate."""
    own = dataclasses.replace(sizes, width=sizes.width // layer.share)
    among = 2 if layer.how == "two" else len(layer.options)
    if layer.drawn and layer.how == "sum":
        raise NotImplementedError("no formula for options with drawn weights")
    if layer.how == "sum":
        weighed = dataclasses.replace(own, leave_again=sizes.again)
        for option in layer.options:
            yield from layer_traffic(option, weighed)
    else:
        for message in _dearest(_forward(option, own) for option in layer.options):
            yield message.times(among + sizes.leave_again)
        once = dataclasses.replace(own, again=False, enter_again=False, leave_again=False)
        yield from _dearest([*layer_traffic(option, once)] for option in layer.options)
    if sizes.split:  # each device weighs its own tokens
        yield sizes.over_tensor("all_reduce", among * FLOAT)


def _dearest(options: Iterable[list[Message]]) -> list[Message]:
    return max(options, key=lambda messages: sum(message.sent for message in messages))


def _forward(layer: Layer, sizes: Sizes) -> list[Message]:
    """What it sends forward: what a backward pass that runs it again sends more."""
    once = dataclasses.replace(sizes, again=False, enter_again=False, leave_again=False)
    twice = dataclasses.replace(sizes, again=True, enter_again=True, leave_again=True)
    less = [message.times(-1) for message in layer_traffic(layer, once)]
    return [*layer_traffic(layer, twice), *less]


@layer_traffic.register
def _(layer: Nested, sizes: Sizes) -> Iterator[Message]:
    yield from layer_traffic(layer.inner, sizes)
    table: Any = layer.inner.table()
    for part in layer.own.takes:
        axis = leaf(table, part.name).axes[part.dim]
        if axis and DEFAULT_RULES[axis] == "tensor":  # each device weighs its own units
            yield sizes.over_tensor("all_reduce", layer.sizes[-1] * FLOAT)


@layer_traffic.register
def _(layer: Shallow, sizes: Sizes) -> Iterator[Message]:
    for message in layer_traffic(layer.block, sizes):  # of all blocks in one
        yield dataclasses.replace(message, size=layer.depth * message.size)


@layer_traffic.register
def _(layer: InOrder, sizes: Sizes) -> Iterator[Message]:
    *before, last = layer.named.values()
    for inner in before:
        yield from layer_traffic(inner, dataclasses.replace(sizes, leave_again=sizes.again))
    yield from layer_traffic(last, sizes)


@layer_traffic.register
def _(layer: Pattern, sizes: Sizes) -> Iterator[Message]:
    yield from layer_traffic(layer.runs, sizes)


@layer_traffic.register
def _(layer: Chunked, sizes: Sizes) -> Iterator[Message]:
    yield from layer_traffic(layer.inner, sizes)


@layer_traffic.register
def _(layer: Stack, sizes: Sizes) -> Iterator[Message]:
    if sizes.nested:
        raise NotImplementedError("no formula for a stack in one that gathers or runs it again")
    for loop in loops_of(layer):
        yield from _loop(loop, sizes)


def _loop(layer: Stack, sizes: Sizes) -> Iterator[Message]:
    enter_again = layer.remat or sizes.enter_again
    nested = layer.remat or (enter_again and not layer.block.loops)
    own = dataclasses.replace(
        sizes,
        again=layer.remat,
        enter_again=enter_again,
        nested=nested,
        early=bool(layer.ladder),
    )
    for message in layer_traffic(layer.block, own):
        yield message.times(layer.depth)
    for message in constants(layer.block, own):  # the loop over layers is left with what changes
        yield message.times(1 + layer.depth * enter_again)
    if sizes.packed and sizes.seq > 1:
        once = 1 + layer.depth * layer.remat
        for message in starts_traffic(layer.block, own):
            yield message.times(once)
        for message in places_traffic(layer.block, own):
            yield message.times(layer.depth * own.runs if sizes.streams else once)


@constants.register
def _(layer: Stack, sizes: Sizes) -> Iterator[Message]:
    yield from ()  # told by its own formula
