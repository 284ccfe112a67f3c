"""What the beginnings of packed documents send over split tokens: whole numbers, forward alone.

No parameter and no gradient has a part in it, so a stack's loop over layers is left with what
changes and it is sent once, and again in each layer where layers are run again. What gathered
parameters make run again keeps it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from gam_jax.layers import (
    GAM,
    MLP,
    TCN,
    TCNCA,
    Attention,
    FusedDelta,
    LatentAttention,
    Layer,
    LayerNorm,
    Linear,
    LinearMemory,
    Mamba,
    Mamba2,
    MinimalRNN,
    Mixed,
    NoOp,
    Pattern,
    ProductMemory,
    RMSNorm,
    Shallow,
    SoftMixture,
    Stack,
    WrittenGAM,
)
from gam_jax.layers.base import layers_in
from gam_jax.layers.recurrent import Recurrent
from gam_jax.ops.conv import reach
from gam_jax.traffic.sizes import FLOAT, Sizes
from sharding.messages import Message

INT = 4
"""Bytes of an int32."""


@functools.singledispatch
def starts_traffic(layer: Layer, sizes: Sizes) -> Iterator[Message]:
    """What a layer sends because it is told where documents begin.

    Raises:
      NotImplementedError: a layer without a formula.
    """
    layers = list(layers_in(layer))
    if not layers:
        raise NotImplementedError(
            f"no formula for what the beginnings of documents send in {type(layer).__name__}"
        )
    for one in layers:
        yield from starts_traffic(one, sizes)


@functools.singledispatch
def places_traffic(layer: Layer, sizes: Sizes) -> Iterator[Message]:
    """The part of it that comes of counting places from a row's counter.

    Layers at the start of a sequence have none. With learned starts each has its own, so that
    this changes from layer to layer.
    """
    for one in layers_in(layer):
        yield from places_traffic(one, sizes)


def knows_starts(layer: Layer) -> bool:
    """Whether there is a formula for it, and for what is inside it."""
    try:
        list(starts_traffic(layer, Sizes(1, 1, 1, FLOAT, 1, 1, False, False, False)))
    except NotImplementedError:
        return False
    return True


def row_numbers(sizes: Sizes) -> Message:
    """One number a row goes from each device to all: documents that began, or the last one's."""
    return sizes.over_seq("all_gather", sizes.rows * INT)


def _convolved(sizes: Sizes, *reaches: int) -> Iterator[Message]:
    """The documents of tokens, and before each convolution those of the tokens before a shard."""
    yield row_numbers(sizes)
    for missing in reaches:
        for _ in range(1, sizes.seq):
            sent = min(missing, sizes.tokens)
            if sent:
                yield sizes.over_seq("permute", sizes.rows * sent * INT)
            missing -= sent


@starts_traffic.register(MLP)
@starts_traffic.register(Linear)
@starts_traffic.register(NoOp)
@starts_traffic.register(LayerNorm)
@starts_traffic.register(RMSNorm)
@starts_traffic.register(ProductMemory)
@starts_traffic.register(MinimalRNN)
@starts_traffic.register(Recurrent)
@starts_traffic.register(Attention)
@starts_traffic.register(LatentAttention)
def _(layer: Layer, sizes: Sizes) -> Iterator[Message]:
    """Tokens alone, a state that is sent anyway, or places."""
    yield from ()


@starts_traffic.register
def _(layer: Stack, sizes: Sizes) -> Iterator[Message]:
    """Told by its own formula."""
    if not knows_starts(layer.block):
        raise NotImplementedError("no formula for what the beginnings of documents send in a stack")
    yield from ()


@starts_traffic.register
def _(layer: Pattern, sizes: Sizes) -> Iterator[Message]:
    yield from starts_traffic(layer.runs, sizes)


@starts_traffic.register
def _(layer: GAM, sizes: Sizes) -> Iterator[Message]:
    if layer.variant != "global":
        yield from _convolved(sizes, reach(layer.kernel, layer.dilation))


@starts_traffic.register
def _(layer: WrittenGAM, sizes: Sizes) -> Iterator[Message]:
    yield from starts_traffic(layer.memory, sizes)
    yield from _convolved(sizes, layer.kernel - 1)


@starts_traffic.register
def _(layer: TCN, sizes: Sizes) -> Iterator[Message]:
    levels = (reach(layer.kernel, layer.factor**level) for level in range(layer.levels))
    yield from _convolved(sizes, *(missing for missing in levels for _ in range(layer.convs)))


@starts_traffic.register
def _(layer: TCNCA, sizes: Sizes) -> Iterator[Message]:
    yield from starts_traffic(layer.tcn, sizes)
    yield row_numbers(sizes)


@places_traffic.register
def _(layer: Attention, sizes: Sizes) -> Iterator[Message]:
    """Where documents begin goes to its place in zigzag order, as queries do."""
    yield row_numbers(sizes)
    if not layer.window:
        yield sizes.over_seq("permute", sizes.rows * sizes.tokens // 2 * INT, 2)


@places_traffic.register
def _(layer: LatentAttention, sizes: Sizes) -> Iterator[Message]:
    yield row_numbers(sizes)


@starts_traffic.register
def _(layer: SoftMixture, sizes: Sizes) -> Iterator[Message]:
    for message in starts_traffic(layer.inner, sizes):
        yield message.times(layer.experts)


@places_traffic.register
def _(layer: SoftMixture, sizes: Sizes) -> Iterator[Message]:
    for message in places_traffic(layer.inner, sizes):
        yield message.times(layer.experts)


@starts_traffic.register
def _(layer: Mixed, sizes: Sizes) -> Iterator[Message]:
    if layer.drawn:
        raise NotImplementedError("no formula for documents in options of which one is drawn")
    for option in layer.options:
        yield from starts_traffic(option, sizes)


@places_traffic.register
def _(layer: Shallow, sizes: Sizes) -> Iterator[Message]:
    blocks = layer.depth if sizes.streams else 1
    for message in places_traffic(layer.block, sizes):  # of all blocks in one
        yield dataclasses.replace(message, size=blocks * message.size)


@starts_traffic.register
def _(layer: LinearMemory, sizes: Sizes) -> Iterator[Message]:
    if layer.recipe.kernel > 1:
        yield from _convolved(sizes, layer.recipe.kernel - 1)


@places_traffic.register
def _(layer: LinearMemory, sizes: Sizes) -> Iterator[Message]:
    if layer.recipe.turned:
        yield row_numbers(sizes)


@starts_traffic.register
def _(layer: FusedDelta, sizes: Sizes) -> Iterator[Message]:
    yield from _convolved(sizes, layer.kernel - 1, layer.short - 1, layer.long - 1)


@starts_traffic.register
def _(layer: Mamba, sizes: Sizes) -> Iterator[Message]:
    yield from _convolved(sizes, layer.kernel - 1)


@starts_traffic.register
def _(layer: Mamba2, sizes: Sizes) -> Iterator[Message]:
    yield from _convolved(sizes, layer.kernel - 1, layer.kernel - 1)  # channels; b and c
