"""Formulas of layers that mix tokens by convolution, bank or attention."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from gam_jax.layers import GAM, TCN, TCNCA, Attention, LatentAttention, WrittenGAM
from gam_jax.ops.conv import reach
from gam_jax.traffic.sizes import (
    FLOAT,
    Sizes,
    all_then_channels,
    bank,
    column_then_row,
    enter,
    gathers,
    halo,
    handed_out,
    layer_traffic,
    leave_sum,
    sums,
)
from sharding.messages import Message


@layer_traffic.register
def _(layer: GAM, sizes: Sizes) -> Iterator[Message]:
    if layer.variant != "global":
        missing = reach(layer.kernel, layer.dilation)
        yield from halo(sizes, missing, sizes.width // sizes.tensor)
    yield from all_then_channels(sizes, layer.variant == "full")
    if layer.variant != "local":
        best = min(layer.top, layer.slots // sizes.tensor)
        yield from bank(sizes, layer.variant == "full", best)
        if layer.offset:
            yield from sums(sizes, sizes.rows * sizes.width * FLOAT)


@layer_traffic.register
def _(layer: WrittenGAM, sizes: Sizes) -> Iterator[Message]:
    read = dataclasses.replace(sizes, leave_again=sizes.again)  # a gate looks at what was read
    yield from layer_traffic(layer.memory, read)
    yield from halo(sizes, layer.kernel - 1, sizes.width // sizes.tensor)
    yield from enter(sizes, sizes.stream)  # what was read
    yield from all_then_channels(sizes)
    if layer.slots:
        yield from bank(sizes, gated=True)


@layer_traffic.register
def _(layer: TCN, sizes: Sizes) -> Iterator[Message]:
    yield from all_then_channels(sizes)
    yield from _levels(layer, sizes)


def _levels(layer: TCN, sizes: Sizes) -> Iterator[Message]:
    """A halo before each convolution."""
    for level in range(layer.levels):
        for _ in range(layer.convs):
            missing = reach(layer.kernel, layer.factor**level)
            yield from halo(sizes, missing, sizes.width // sizes.tensor)


@layer_traffic.register
def _(layer: TCNCA, sizes: Sizes) -> Iterator[Message]:
    tokens = sizes.rows * sizes.tokens
    yield from _levels(layer.tcn, sizes)
    yield sizes.over_tensor("all_reduce", tokens * layer.keys * sizes.itemsize, sizes.runs)
    yield gathers(sizes.stream, sizes, sizes.enters)  # the convolutions' channels, and gradients
    yield sizes.over_tensor("reduce_scatter", sizes.stream)
    if layer.variant == "full":
        yield from all_then_channels(sizes)
        yield from handed_out(sizes, gated=True)
    else:
        yield from column_then_row(sizes, multiplied=False)
    yield from _in_chunks(layer, sizes)


def _in_chunks(layer: TCNCA, sizes: Sizes) -> Iterator[Message]:
    """The weights are common to all devices; a chunk that a shard goes on with began before it.

    Chunks are counted from where documents begin, so they end with no shard.
    """
    block = min(layer.chunk, sizes.tokens)
    whole = (sizes.seq == 1 or sizes.tokens % layer.chunk == 0) and not sizes.packed
    seen = block if whole else layer.chunk + block
    queries = -(-sizes.tokens // block) * block
    yield from sums(sizes, sizes.rows * queries * seen * sizes.itemsize)
    if not whole:
        yield from halo(sizes, layer.chunk, layer.keys)
        yield from halo(sizes, layer.chunk, layer.expansion * sizes.width // sizes.tensor)


@layer_traffic.register
def _(layer: Attention, sizes: Sizes) -> Iterator[Message]:
    yield from column_then_row(sizes, layer.out_bias)
    if layer.qk_norm and layer.qk_norm_over == "all":  # mean squares, and their gradients
        squares = sizes.rows * sizes.tokens * FLOAT
        yield sizes.over_tensor("all_reduce", squares, 2 * (sizes.runs + 1))
    elif layer.qk_norm:  # each device norms its own heads: a part of the gradients
        yield from sums(sizes, layer.size * FLOAT, layer.size * FLOAT)
    if layer.window:  # keys and values of the window before a shard
        yield from halo(sizes, layer.window - 1, 2 * layer.groups * layer.size // sizes.tensor)
    elif sizes.seq > 1:
        yield from _ring(layer, sizes)


def _ring(layer: Attention, sizes: Sizes) -> Iterator[Message]:
    """Keys and values round the ring, then again with their float32 gradients, which come home.

    Half shards of queries, keys and values go to their places in zigzag order, and of the mixture
    back.
    """
    token = sizes.rows * sizes.tokens * layer.size // sizes.tensor
    keys, queries, passes = token * layer.groups, token * layer.heads, sizes.runs + 1

    def sent(size: int, count: int) -> Message:
        return sizes.over_seq("permute", size, count)

    yield sent((queries + 2 * keys) // 2 * sizes.itemsize, 2 * passes)
    yield sent(queries // 2 * sizes.itemsize, 2 * passes)
    yield sent(keys * sizes.itemsize, 2 * (sizes.seq - 1) * passes)
    yield sent(keys // 2 * FLOAT, 4 * sizes.seq)


@layer_traffic.register
def _(layer: LatentAttention, sizes: Sizes) -> Iterator[Message]:
    """Latents and the key that heads share are made of each device's own tokens, and gathered."""
    wide, alike = sizes.width * sizes.itemsize, (layer.latent, layer.rotary_size)
    tokens = sizes.rows * sizes.tokens * sizes.itemsize
    if layer.query_latent:
        yield from enter(sizes, tokens * layer.query_latent, multiplied=True)
    else:
        yield from enter(sizes, sizes.stream, multiplied=True)
    yield from leave_sum(sizes, layer.bias, multiplied=True)
    for numbers in alike:
        if sizes.split:
            yield gathers(tokens * numbers, sizes, sizes.runs)
        yield sizes.over_seq("all_gather", tokens * numbers, sizes.runs)
        yield sizes.over_both("all_reduce", tokens * numbers * sizes.seq)  # the gradient
    if sizes.split:
        yield from sums(sizes, *(wide * n for n in alike), layer.latent * FLOAT)
        if layer.query_latent:
            yield from sums(sizes, wide * layer.query_latent, layer.query_latent * FLOAT)
        if layer.bias:
            numbers = (*alike, layer.query_latent) if layer.query_latent else alike
            yield from sums(sizes, *(n * sizes.itemsize for n in numbers))
