"""Formulas of layers in which each token is alone: feed-forwards, experts, banks."""

from __future__ import annotations

from collections.abc import Iterator

from gam_jax.layers import MLP, Linear, MoE, MoFME, NoOp, ProductMemory
from gam_jax.ops.dispatch import cheapest
from gam_jax.traffic.sizes import (
    FLOAT,
    Sizes,
    all_then_channels,
    column_then_row,
    gathers,
    handed_out,
    layer_traffic,
    sums,
)
from sharding.messages import Message


@layer_traffic.register
def _(layer: MLP, sizes: Sizes) -> Iterator[Message]:
    yield from column_then_row(sizes, layer.bias)


@layer_traffic.register
def _(layer: Linear, sizes: Sizes) -> Iterator[Message]:
    yield from all_then_channels(sizes, multiplied=True)


@layer_traffic.register
def _(layer: NoOp, sizes: Sizes) -> Iterator[Message]:
    yield from ()


@layer_traffic.register
def _(layer: MoE, sizes: Sizes) -> Iterator[Message]:
    tokens, every = sizes.rows * sizes.tokens, layer.experts
    gated, one = layer.shared_gate, sizes.width * sizes.itemsize
    bias = layer.shared > 0 and layer.ffn.bias and not gated
    yield from column_then_row(sizes, bias, multiplied=False)
    if gated:  # whose vector, and the bias that it meets, all devices use for their hidden units
        yield from sums(sizes, *[one] * (1 + layer.ffn.bias))
    if sizes.split:  # scores, then the router's gradients, of which each device has a part
        yield gathers(tokens * every * FLOAT, sizes, sizes.runs)
        yield sizes.over_tensor("all_reduce", sizes.width * every * FLOAT)
        if layer.router.bias:
            yield sizes.over_tensor("all_reduce", every * FLOAT)
    yield sizes.over_tensor("all_reduce", tokens * layer.chosen * FLOAT)  # by weights
    if layer.ffn.bias:  # of which each device adds a part
        own = every // sizes.expert * sizes.width * sizes.itemsize
        yield sizes.over_tensor("all_reduce", own)
    if sizes.seq > 1:  # sums for losses and measures, room that is taken
        yield sizes.over_seq("all_reduce", sizes.rows * (2 * every + 4) * FLOAT)
        if layer.capacity.factor and layer.capacity.tokens:
            yield sizes.over_seq("all_gather", sizes.rows * every * FLOAT, sizes.enters)
    if sizes.expert > 1:
        yield from _to_experts(layer, sizes)


def _to_experts(layer: MoE, sizes: Sizes) -> Iterator[Message]:
    """Tokens to the experts on other devices, and what comes of them back."""
    tokens, one = sizes.rows * sizes.tokens, sizes.width * sizes.itemsize
    room, sent = layer.room(sizes.rows, sizes.tokens), sizes.over_expert
    if cheapest(layer.strategy, tokens, layer.experts, room, sizes.expert) == "exchange":
        slots = layer.experts * room
        yield sent("all_to_all", slots * one, 4 + 2 * sizes.again)
        yield sent("all_to_all", layer.experts * FLOAT, sizes.runs)  # how many there are
        return
    yield sent("all_gather", tokens * one, 1 + sizes.enters)
    yield sent("reduce_scatter", sizes.expert * tokens * one, 2 + sizes.leave_again)
    chosen = tokens * layer.chosen * FLOAT
    yield sent("all_gather", chosen, 2 * sizes.enters)  # which experts, and their weights
    yield sent("reduce_scatter", sizes.expert * chosen)  # the gradient by weights


@layer_traffic.register
def _(layer: MoFME, sizes: Sizes) -> Iterator[Message]:
    width, experts, own = sizes.width, layer.experts, layer.experts // sizes.expert
    yield from layer_traffic(layer.adaptor, sizes)
    if sizes.split:  # but for the adaptor, each device works on its own tokens of the stream
        asked = layer.samples if layer.samples and layer.doubt else 1
        yield sizes.over_tensor("all_reduce", width * experts * FLOAT, asked)
        yield sizes.over_tensor("all_reduce", experts * FLOAT, asked)
        shared = width * sizes.itemsize
        yield from sums(sizes, shared, shared, shared * width, shared * width)
        yield from sums(sizes, own * 2 * shared, own * 2 * shared * width)
    tokens = sizes.rows * sizes.tokens // (sizes.tensor if sizes.split else 1)
    one, chosen = tokens * width * sizes.itemsize, tokens * layer.chosen * FLOAT
    yield sizes.over_expert("all_gather", one, sizes.enters)
    yield sizes.over_expert("reduce_scatter", one * sizes.expert)
    yield sizes.over_expert("all_gather", chosen, 2 * sizes.enters)  # experts and weights
    yield sizes.over_expert("reduce_scatter", chosen * sizes.expert)
    mixed = 2 * one  # scale and shift
    yield sizes.over_expert("reduce_scatter", mixed * sizes.expert, sizes.runs)
    yield sizes.over_expert("all_gather", mixed)


@layer_traffic.register
def _(layer: ProductMemory, sizes: Sizes) -> Iterator[Message]:
    queries = 2 * layer.heads * layer.keys * sizes.itemsize
    yield from all_then_channels(sizes)
    yield from sums(sizes, sizes.width * queries, queries, layer.side * queries)
    yield from handed_out(sizes, gated=False)
