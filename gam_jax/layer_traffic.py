"""What a layer should send in a training step, by formula: from sizes alone.

Written from the design of each layer, not from its program, see `gam_jax.traffic`. Collectives are
those of the default rules, which split channels, slots, hidden units and vocabulary alike.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from gam_jax.layers import (
    GAM,
    MLP,
    Attention,
    Block,
    Chunked,
    Layer,
    LayerNorm,
    MoE,
    RMSNorm,
    Stack,
)
from gam_jax.ops.conv import reach
from gam_jax.ops.dispatch import cheapest
from sharding.messages import Message

FLOAT = 4
"""Bytes of a float32."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What one device works on.

    Attributes:
      rows: of a part of the batch, on this device.
      tokens: of each row, on this device's shard of the sequence.
      width: D.
      itemsize: bytes of a number of the arithmetic.
      seq, tensor, expert: devices along those axes.
      split: whether the residual stream is split over tokens between layers.
      again: whether the backward pass runs the layer's forward part again.
      enter_again: whether it gathers the layer's input again.
      leave_again: whether it sums the layer's output again, for what follows in the block.
    """

    rows: int
    tokens: int
    width: int
    itemsize: int
    seq: int
    tensor: int
    split: bool
    again: bool
    enter_again: bool
    leave_again: bool = False
    expert: int = 1

    @property
    def stream(self) -> int:
        """Bytes of [B, T, D] on this device."""
        return self.rows * self.tokens * self.width * self.itemsize

    def over_tensor(self, collective: str, size: int, count: int = 1) -> Message:
        """A message along `tensor`."""
        return Message(collective, ("tensor",), self.tensor, size, count)

    def over_seq(self, collective: str, size: int, count: int = 1) -> Message:
        """A message along `seq`."""
        return Message(collective, ("seq",), self.seq, size, count)


def gathers(size: int, sizes: Sizes, count: int = 1) -> Message:
    """Gathers an array that is `size` bytes when whole."""
    return sizes.over_tensor("all_gather", size // sizes.tensor, count)


@functools.singledispatch
def layer_traffic(layer: Layer, sizes: Sizes) -> Iterator[Message]:
    """What a layer sends in a forward and a backward pass.

    Raises:
      NotImplementedError: a layer without a formula.
    """
    raise NotImplementedError(f"no formula for the traffic of {type(layer).__name__}")


@layer_traffic.register
def _(layer: GAM, sizes: Sizes) -> Iterator[Message]:
    runs = 2 if sizes.again else 1
    if layer.variant != "global" and sizes.seq > 1:
        token = sizes.rows * sizes.width // sizes.tensor * sizes.itemsize
        missing = reach(layer.kernel, layer.dilation)
        for _ in range(1, sizes.seq):  # a halo longer than a shard takes several hops
            sent = min(missing, sizes.tokens)
            if sent:
                yield Message("permute", ("seq",), sizes.seq, sent * token, runs + 1)
            missing -= sent
    one = sizes.rows * sizes.tokens * FLOAT  # a number a token
    if sizes.split:
        yield gathers(sizes.stream, sizes, 1 + sizes.enter_again)  # into the layer ...
        yield sizes.over_tensor("reduce_scatter", sizes.stream)  # ... and its gradient
        out = sizes.stream // sizes.tensor
        yield sizes.over_tensor("all_to_all", out, 2 + sizes.leave_again)  # out
    else:
        yield sizes.over_tensor("all_reduce", sizes.stream)  # the gradient by the layer's input
        yield gathers(sizes.stream, sizes, 1 + sizes.leave_again)  # channels, out
    if layer.variant != "local":
        if layer.top:  # each device's best scores
            best = min(layer.top, layer.slots // sizes.tensor)
            yield sizes.over_tensor("all_gather", one * best, runs)
        yield sizes.over_tensor("all_reduce", one, 2 * runs + 1)  # softmax: max, sum; gradient
        if layer.offset:
            yield sizes.over_tensor("all_reduce", sizes.rows * sizes.width * FLOAT)  # its gradient
        yield sizes.over_tensor("reduce_scatter", sizes.stream, runs)  # retrieval ...
        yield gathers(sizes.stream, sizes)  # ... and its gradient


@layer_traffic.register
def _(layer: MLP, sizes: Sizes) -> Iterator[Message]:
    yield from _column_then_row(sizes, layer.bias)


def _column_then_row(sizes: Sizes, bias: bool) -> Iterator[Message]:
    """Weights split by columns, then by rows: a sum on the way out, and of the input's gradient."""
    if not sizes.split:
        yield sizes.over_tensor("all_reduce", sizes.stream, 2 + sizes.leave_again)
        return
    yield gathers(sizes.stream, sizes, 2 + sizes.enter_again)
    yield sizes.over_tensor("reduce_scatter", sizes.stream, 2 + sizes.leave_again)
    if bias:
        yield sizes.over_tensor("all_reduce", sizes.width * sizes.itemsize)  # gradient of b_out


@layer_traffic.register
def _(layer: Attention, sizes: Sizes) -> Iterator[Message]:
    yield from _column_then_row(sizes, layer.out_bias)
    if layer.qk_norm:  # each device norms its own heads: a part of the gradients
        yield sizes.over_tensor("all_reduce", layer.size * FLOAT, 2)
    if sizes.seq > 1:
        runs = 2 if sizes.again else 1
        yield from (_halo if layer.window else _ring)(layer, sizes, runs)


def _ring(layer: Attention, sizes: Sizes, runs: int) -> Iterator[Message]:
    """Keys and values round the ring, then again with their float32 gradients, which come home.

    Half shards of queries, keys and values go to their places in zigzag order, and of the mixture
    back.
    """
    token = sizes.rows * sizes.tokens * layer.size // sizes.tensor
    keys, queries = token * layer.groups, token * layer.heads

    def sent(size: int, count: int) -> Message:
        return Message("permute", ("seq",), sizes.seq, size, count)

    yield sent((queries + 2 * keys) // 2 * sizes.itemsize, 2 * (runs + 1))
    yield sent(queries // 2 * sizes.itemsize, 2 * (runs + 1))
    yield sent(keys * sizes.itemsize, 2 * (sizes.seq - 1) * (runs + 1))
    yield sent(keys // 2 * FLOAT, 4 * sizes.seq)


def _halo(layer: Attention, sizes: Sizes, runs: int) -> Iterator[Message]:
    """The keys and values of the window before a shard, in several hops if it is shorter."""
    token = 2 * sizes.rows * layer.groups * layer.size // sizes.tensor * sizes.itemsize
    missing = min(layer.window - 1, (sizes.seq - 1) * sizes.tokens)
    while missing > 0:
        size = min(missing, sizes.tokens) * token
        yield Message("permute", ("seq",), sizes.seq, size, runs + 1)
        missing -= sizes.tokens


@layer_traffic.register
def _(layer: MoE, sizes: Sizes) -> Iterator[Message]:
    tokens, every, runs = sizes.rows * sizes.tokens, layer.experts, 1 + sizes.again
    yield from _column_then_row(sizes, layer.shared > 0 and layer.ffn.bias)
    if sizes.split:  # scores, then the router's gradients, of which each device has a part
        yield gathers(tokens * every * FLOAT, sizes, runs)
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
            yield sizes.over_seq("all_gather", sizes.rows * every * FLOAT, 1 + sizes.enter_again)
    if sizes.expert > 1:
        yield from _to_experts(layer, sizes)


def _to_experts(layer: MoE, sizes: Sizes) -> Iterator[Message]:
    """Tokens to the experts on other devices, and what comes of them back."""
    tokens, one = sizes.rows * sizes.tokens, sizes.width * sizes.itemsize
    room = layer.room(sizes.rows, sizes.tokens)

    def sent(collective: str, size: int, count: int = 1) -> Message:
        return Message(collective, ("expert",), sizes.expert, size, count)

    if cheapest(layer.strategy, tokens, layer.experts, room, sizes.expert) == "exchange":
        slots = layer.experts * room
        yield sent("all_to_all", slots * one, 4 + 2 * sizes.again)
        yield sent("all_to_all", layer.experts * FLOAT, 1 + sizes.again)  # how many there are
        return
    enters = 1 + sizes.enter_again
    yield sent("all_gather", tokens * one, 1 + enters)
    yield sent("reduce_scatter", sizes.expert * tokens * one, 2 + sizes.leave_again)
    chosen = tokens * layer.chosen * FLOAT
    yield sent("all_gather", chosen, 2 * enters)  # which experts, and their weights
    yield sent("reduce_scatter", sizes.expert * chosen)  # the gradient by weights


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
        followed = layer.norms != "pre" or place + 1 < len(steps)  # by a norm, which looks at it
        own = dataclasses.replace(sizes, leave_again=sizes.again and followed)
        for part in (layer.norm, *(getattr(layer, name) for name in names)):
            yield from layer_traffic(part, own)
        if layer.norms == "sandwich":
            yield from layer_traffic(layer.norm, own)


@layer_traffic.register
def _(layer: Chunked, sizes: Sizes) -> Iterator[Message]:
    yield from layer_traffic(layer.inner, sizes)


@layer_traffic.register
def _(layer: Stack, sizes: Sizes) -> Iterator[Message]:
    enter_again = layer.remat or sizes.enter_again
    sizes = dataclasses.replace(sizes, again=layer.remat, enter_again=enter_again)
    for message in layer_traffic(layer.block, sizes):
        yield message.times(layer.depth)
