"""Formulas of layers whose state is written as the sequence is read."""

from __future__ import annotations

from collections.abc import Iterator

from gam_jax.layers import GRU, LSTM, FusedDelta, LinearMemory, Mamba, Mamba2, MinimalRNN
from gam_jax.layers.fused_delta import PATHS
from gam_jax.layers.recurrent import Recurrent
from gam_jax.traffic.sizes import (
    FLOAT,
    Sizes,
    all_then_channels,
    column_then_row,
    constants,
    gathers,
    halo,
    layer_traffic,
    prefix,
    sums,
)
from sharding.messages import Message


@layer_traffic.register
def _(layer: LinearMemory, sizes: Sizes) -> Iterator[Message]:
    recipe, keys, values = layer.recipe, layer.keys, layer.values
    heads, groups = layer.heads // sizes.tensor, layer.groups // sizes.tensor
    yield from column_then_row(sizes)
    if not layer.averages:  # each device norms its own heads, in float32
        yield from sums(sizes, values * FLOAT)
    if layer.decay_rank:
        yield from sums(sizes, sizes.width * layer.decay_rank * sizes.itemsize)
    if recipe.gate == "low_rank":
        yield from sums(sizes, sizes.width * values * sizes.itemsize)
    yield from halo(sizes, recipe.kernel - 1, groups * layer.mixed)
    one = sizes.rows * heads * keys * FLOAT  # a number for each key channel
    yield from prefix(sizes, one * (values + layer.averages))
    if recipe.rule == "delta":
        yield from prefix(sizes, one * keys)
    elif recipe.decay in ("head", "channel"):
        yield from prefix(sizes, one if recipe.decay == "channel" else one // keys)


@constants.register
def _(layer: LinearMemory, sizes: Sizes) -> Iterator[Message]:
    forgets = sizes.packed and layer.recipe.decay == "none" and layer.recipe.rule != "delta"
    if layer.recipe.decay == "fixed" or forgets:  # at the beginning of a document, by a decay
        yield sizes.over_seq("all_gather", sizes.rows * layer.heads // sizes.tensor * FLOAT)


@layer_traffic.register
def _(layer: FusedDelta, sizes: Sizes) -> Iterator[Message]:
    heads, keys, values = layer.heads // sizes.tensor, layer.keys, layer.values
    yield from column_then_row(sizes)
    yield from sums(sizes, values * FLOAT)  # each device norms its own heads
    for taps, channels in (
        (layer.kernel, 2 * keys + values),
        (layer.short, values),
        (layer.long, values),
    ):
        yield from halo(sizes, taps - 1, heads * channels)
    yield from prefix(sizes, *(sizes.rows * heads * keys * n * FLOAT for n in (values, keys)))
    paths = sizes.rows * sizes.tokens * layer.heads * PATHS * sizes.itemsize
    yield gathers(paths, sizes, sizes.runs)  # their sizes, for all hidden units ...
    yield from sums(sizes, paths)
    yield sizes.over_tensor("reduce_scatter", paths, sizes.runs)  # ... and the gates' logits
    yield gathers(paths, sizes)


@layer_traffic.register
def _(layer: Mamba2, sizes: Sizes) -> Iterator[Message]:
    heads, shared = layer.heads // sizes.tensor, 2 * layer.groups * layer.state
    yield from column_then_row(sizes, layer.out_bias)
    one = shared * sizes.itemsize  # all devices find b and c of all groups: maps, taps, biases
    vectors = layer.kernel + layer.conv_bias + layer.in_bias
    yield from sums(sizes, sizes.width * one, *[one] * vectors)
    for channels in (heads * layer.head, shared):
        yield from halo(sizes, layer.kernel - 1, channels)
    if sizes.streams:  # what these convolutions begin with; and each document in a row
        begins = [sizes.rows * (layer.kernel - 1) * one] * (1 + sizes.packed)
        yield from sums(sizes, *begins)
    one = sizes.rows * heads * FLOAT  # a number a head
    yield from prefix(sizes, one, one * layer.state * layer.head)
    if layer.norm != "none" and layer.groups % sizes.tensor:  # groups lie on several devices
        squares = sizes.tokens * one * sizes.tensor
        yield gathers(squares, sizes, sizes.runs)
        yield from sums(sizes, squares)


@layer_traffic.register
def _(layer: Mamba, sizes: Sizes) -> Iterator[Message]:
    rank = layer.steps
    tokens, channels = sizes.rows * sizes.tokens, layer.inner // sizes.tensor
    yield from column_then_row(sizes, layer.out_bias)
    small = tokens * (rank + 2 * layer.state) * sizes.itemsize
    yield sizes.over_tensor("all_reduce", small, sizes.runs)
    yield from sums(sizes, tokens * rank * sizes.itemsize)
    yield from halo(sizes, layer.kernel - 1, channels)
    scans = 1 + (sizes.seq > 1)  # the shard alone, then from what is before it
    bc = tokens * layer.state * FLOAT
    yield sizes.over_tensor("all_reduce", bc, scans + 1)  # of b in both, of c in what is read
    state = sizes.rows * layer.state * channels * FLOAT
    yield from prefix(sizes, state, state)


@layer_traffic.register
def _(layer: MinimalRNN, sizes: Sizes) -> Iterator[Message]:
    state = sizes.rows * layer.inner // sizes.tensor * FLOAT
    yield from column_then_row(sizes)
    yield from prefix(sizes, state, state)


@layer_traffic.register
def _(layer: Recurrent, sizes: Sizes) -> Iterator[Message]:
    """h is gathered token by token; where tokens are split, shards take turns to find a state.

    A turn is counted on every device, though each takes only its own. Turns are run again in the
    backward pass.
    """
    state = sizes.rows * sizes.width // sizes.tensor * FLOAT
    turns, gatherings = sizes.seq - 1, 2 if isinstance(layer, GRU) and layer.reset_first else 1
    steps = sizes.tokens * gatherings
    yield from all_then_channels(sizes)
    often = sizes.enters + turns * (sizes.runs + 1)
    yield sizes.over_tensor("all_gather", state, steps * often)
    yield sizes.over_tensor("reduce_scatter", state * sizes.tensor, steps * sizes.seq)
    states = 2 if isinstance(layer, LSTM) else 1
    yield sizes.over_seq("permute", state, states * turns * (sizes.runs + 1))
