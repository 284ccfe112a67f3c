"""What formulas are made from: sizes, and the few ways in which layers talk."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from gam_jax.layers import Layer
from gam_jax.layers.base import layers_in
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
      seq, tensor: devices along those axes.
      split: whether the residual stream is split over tokens between layers.
      rings: in how many rings products go along with gathers and scatters of it, where they do: 1,
        or 2 of which each has half of a device's tokens; 0 for none.
      again: whether the backward pass runs the layer's forward part again.
      enter_again: whether it gathers the layer's input again.
      leave_again: whether it sums the layer's output again, for what follows in the block.
      expert: devices along that axis.
      nested: whether the layer is in a stack that gathers or runs it again.
      streams: whether starts are learned.
      packed: whether layers are told where documents begin.
      early: whether the steps of a block read the stream without the step before, see
        `layers.ladder`.
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
    nested: bool = False
    streams: bool = False
    packed: bool = False
    rings: int = 0
    early: bool = False

    @property
    def stream(self) -> int:
        """Bytes of [B, T, D] on this device."""
        return self.rows * self.tokens * self.width * self.itemsize

    @property
    def runs(self) -> int:
        """How often the layer's forward part runs."""
        return 1 + self.again

    @property
    def enters(self) -> int:
        """How often what is not kept is gathered."""
        return 1 + self.enter_again

    def over_tensor(self, collective: str, size: int, count: int = 1) -> Message:
        """A message along `tensor`."""
        return Message(collective, ("tensor",), self.tensor, size, count)

    def over_seq(self, collective: str, size: int, count: int = 1) -> Message:
        """A message along `seq`."""
        return Message(collective, ("seq",), self.seq, size, count)

    def over_both(self, collective: str, size: int) -> Message:
        """A message along `seq` and `tensor` together."""
        named = {"seq": self.seq, "tensor": self.tensor}
        axes = tuple(name for name, devices in named.items() if devices > 1)
        return Message(collective, axes, self.seq * self.tensor, size)

    def over_expert(self, collective: str, size: int, count: int = 1) -> Message:
        """A message along `expert`."""
        return Message(collective, ("expert",), self.expert, size, count)


@functools.singledispatch
def layer_traffic(layer: Layer, sizes: Sizes) -> Iterator[Message]:
    """What a layer sends in a forward and a backward pass.

    Raises:
      NotImplementedError: a layer without a formula.
    """
    raise NotImplementedError(f"no formula for the traffic of {type(layer).__name__}")


@functools.singledispatch
def constants(layer: Layer, sizes: Sizes) -> Iterator[Message]:
    """What a layer sends that no token and no parameter has a part in.

    A stack's loop over layers is left with what changes, so this is sent once forward however
    deep it is, and again where layers are run again.
    """
    for inner in layers_in(layer):
        yield from constants(inner, sizes)


def gathers(size: int, sizes: Sizes, count: int = 1) -> Message:
    """Gathers an array that is `size` bytes when whole."""
    return sizes.over_tensor("all_gather", size // sizes.tensor, count)


def sums(sizes: Sizes, *bytes_of: int) -> Iterator[Message]:
    """Arrays that all devices of `tensor` have alike and each uses for a part: the gradients."""
    for size in bytes_of:
        yield sizes.over_tensor("all_reduce", size)


def ring(sizes: Sizes, size: int, count: int) -> Iterator[Message]:
    """The tokens of every device to all others, or sums of them back: n - 1 steps.

    Args:
      sizes: of the layer.
      size: bytes of the array when all tokens of this shard are together.
      count: how often.
    """
    tokens = sizes.tokens // sizes.tensor
    halves = (tokens // 2, tokens - tokens // 2) if sizes.rings == 2 else (tokens,)
    for part in filter(None, halves):
        steps = (sizes.tensor - 1) * count
        yield sizes.over_tensor("permute", size // sizes.tokens * part, steps)


def enter(sizes: Sizes, size: int, multiplied: bool = False) -> Iterator[Message]:
    """An array like the residual stream goes to all devices of `tensor`, its gradient comes back.

    Args:
      sizes: of the layer.
      size: bytes of the array when all tokens of this shard are together.
      multiplied: whether it meets a product at the door, which may be overlapped. What came by in
        a ring is kept where gathered tokens are not.
    """
    if multiplied and sizes.split and sizes.rings:
        yield from ring(sizes, size, sizes.runs + 1)
    elif sizes.split:
        yield gathers(size, sizes, sizes.enters)
        yield sizes.over_tensor("reduce_scatter", size)
    else:
        yield sizes.over_tensor("all_reduce", size)


def leave_sum(sizes: Sizes, bias: bool = False, multiplied: bool = False) -> Iterator[Message]:
    """Parts of [B, T, D] are summed into the residual stream.

    Args:
      sizes: of the layer.
      bias: whether something is added to the sum.
      multiplied: whether the parts come from a product, which may be overlapped.
    """
    if not sizes.split:
        yield sizes.over_tensor("all_reduce", sizes.stream, 1 + sizes.leave_again)
        return
    if multiplied and sizes.rings:
        yield from ring(sizes, sizes.stream, 2 + sizes.leave_again)
    else:
        yield sizes.over_tensor("reduce_scatter", sizes.stream, 1 + sizes.leave_again)
        yield gathers(sizes.stream, sizes)
    if bias:
        yield from sums(sizes, sizes.width * sizes.itemsize)


def column_then_row(sizes: Sizes, bias: bool = False, multiplied: bool = True) -> Iterator[Message]:
    """Weights split by columns, then by rows: sums on the way out, and of the input's gradient.

    Args:
      sizes: of the layer.
      bias: as in `leave_sum`.
      multiplied: whether there are products at both ends, which may be overlapped.
    """
    yield from enter(sizes, sizes.stream, multiplied)
    yield from leave_sum(sizes, bias, multiplied)


def leave_channels(sizes: Sizes) -> Iterator[Message]:
    """Channels that each device has of [B, T, D] are joined in the residual stream."""
    if sizes.split:
        part = sizes.stream // sizes.tensor
        yield sizes.over_tensor("all_to_all", part, 2 + sizes.leave_again)
    else:
        yield gathers(sizes.stream, sizes, 1 + sizes.leave_again)


def all_then_channels(sizes: Sizes, multiplied: bool = False) -> Iterator[Message]:
    """Each device makes channels of its own from all of the input; `multiplied` as in `enter`."""
    yield from enter(sizes, sizes.stream, multiplied)
    yield from leave_channels(sizes)


def halo(sizes: Sizes, missing: int, channels: int) -> Iterator[Message]:
    """The tokens before a shard, in several hops where shards are shorter; gradients back.

    Args:
      sizes: of the layer.
      missing: how many tokens.
      channels: of each, on this device.
    """
    token = sizes.rows * channels * sizes.itemsize
    for _ in range(1, sizes.seq):
        sent = min(missing, sizes.tokens)
        if sent:
            yield sizes.over_seq("permute", sent * token, sizes.runs + 1)
        missing -= sent


def prefix(sizes: Sizes, *elements: int) -> Iterator[Message]:
    """What a shard does to a state, gathered, and the gradients back: however many its tokens.

    Args:
      sizes: of the layer.
      elements: bytes of each array of it, on one device.
    """
    for size in elements:
        yield sizes.over_seq("all_gather", size, sizes.enters)
        yield sizes.over_seq("reduce_scatter", size * sizes.seq)


def bank(sizes: Sizes, gated: bool, best: int = 0) -> Iterator[Message]:
    """A read from slots that are split: the softmax is completed, and channels handed out.

    Args:
      sizes: of the layer.
      gated: whether what is read meets a gate, which looks at it.
      best: how many slots' scores each device puts up for the best of all; 0 where all are read.
    """
    one = sizes.rows * sizes.tokens * FLOAT  # a number a token
    if best:
        yield sizes.over_tensor("all_gather", one * best, sizes.runs)
    yield sizes.over_tensor("all_reduce", one, 2 * sizes.runs + 1)  # max, sum; gradient
    yield from handed_out(sizes, gated)


def handed_out(sizes: Sizes, gated: bool) -> Iterator[Message]:
    """Parts of [B, T, D] are summed, each device keeping its channels; the gradient is gathered.

    Args:
      sizes: of the layer.
      gated: whether the sum meets a gate, which looks at it.
    """
    again = sizes.again if gated else sizes.leave_again
    yield sizes.over_tensor("reduce_scatter", sizes.stream, 1 + again)
    yield gathers(sizes.stream, sizes)
