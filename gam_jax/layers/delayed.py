"""Networks of non-causal convolutions that run on a stream, a known number of samples late.

A network is described once, as a frozen graph of the nodes below, and its parameters serve two
ways. Offline, `network(params, x)`, convolutions see as far into the future as their padding lets
them. As a stream, `network.stream(params, x, state)`, every node keeps its last inputs in place of
padding, so that it gives late what it gives offline. How late is known beforehand, `delay()`:
faster branches wait for slower ones, and strided nodes wait until their grid is that of the whole.

The law: where as many zeros as the network sees (`field`) stand before the signal in both runs,
stream[d:] = offline[:-d] for chunks of any multiple of `multiple`. Without the zeros the first
`field` outputs differ: offline a deep node sees zeros before the signal, in a stream what the nodes
before it make of zeros.

Source: Caillon and Esling 2022 (arXiv 2204.07064); the alignment of strided nodes and of branches
at the rate of their outputs is derived here, see docs/papers/streamable_convs.md.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from fractions import Fraction
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gam_jax.params import Param, Params, Table, zero_shards, zeros
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Count, check_bounds
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Node:
    """A part of a network: what all nodes say of themselves.

    Rates are counted in samples: a node gives `ratio` outputs for each input.
    """

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def ratio(self) -> Fraction:
        """Outputs for each input."""
        return Fraction(1)

    @property
    def multiple(self) -> int:
        """A chunk has a multiple of so many inputs."""
        return 1

    @property
    def field(self) -> int:
        """Inputs from the first to the last that an output sees."""
        return 1

    def delay(self, given: int = 0) -> int:
        """Outputs by which the stream is late.

        Args:
          given: inputs by which what enters is late.
        """
        return int(given * self.ratio)

    def features(self, width: int) -> int:
        """Channels of the output."""
        return width

    def table(self, width: int) -> Table:
        """The parameters, for inputs of so many channels."""
        return {}

    def state_table(self, batch: int, width: int, given: int = 0) -> Any:
        """What a stream keeps between chunks, as a table of `Param`; () for nothing."""
        return ()

    def __call__(self, params: Params, x: Float[Array, "B N D"]) -> Float[Array, "B M F"]:
        """The whole signal at once, N a multiple of `multiple`; M = N ratio.

        Raises:
          UserError: another N.
        """
        raise NotImplementedError

    def stream(
        self,
        params: Params,
        x: Float[Array, "B N D"],
        state: Any,
        given: int = 0,
        axis: str | None = None,
    ) -> tuple[Float[Array, "B M F"], Any]:
        """The next chunk, `delay(given)` outputs late.

        Args:
          params: as offline.
          x: the chunk, or this device's part of it.
          state: what the chunk before has left; `started` for the first one.
          given: inputs by which x is late.
          axis: mesh axis that splits the chunk along time. A device sends the inputs that nodes
            keep to the next one, whatever the length of its part.

        Raises:
          UserError: a chunk that is no multiple of `multiple`.
        """
        raise NotImplementedError


def started(
    network: Node, batch: int, width: int, dtype: Any = jnp.float32, axes: Axes = Axes()
) -> Any:
    """The state before the first chunk: zeros."""
    zero = zero_shards(network.state_table(batch, width), axes)
    return jax.tree.map(lambda x: x.astype(dtype), zero)


def streamed(
    network: Node, params: Params, x: Float[Array, "B N D"], chunk: int
) -> Float[Array, "B M F"]:
    """The stream of a whole signal, chunk after chunk in one loop, beginning with zeros.

    Raises:
      UserError: a chunk that does not divide the signal, or see `Node.stream`.
    """
    rows, samples, width = x.shape
    if chunk < 1 or samples % chunk:
        raise UserError(f"streamed: chunk {chunk} does not divide a signal of {samples} samples")
    parts = x.reshape(rows, samples // chunk, chunk, width).swapaxes(0, 1)

    def step(state: Any, part: Array) -> tuple[Any, Array]:
        y, state = network.stream(params, part, state)
        return state, y

    _, y = lax.scan(step, started(network, rows, width, x.dtype), parts)
    return y.swapaxes(0, 1).reshape(rows, -1, y.shape[-1])


@dataclasses.dataclass(frozen=True)
class Wait(Node):
    """Nothing but a delay: offline its output is its input.

    Attributes:
      samples: that a stream is later behind it.
    """

    samples: Count = 0

    def delay(self, given: int = 0) -> int:
        """Those beside what enters late."""
        return given + self.samples

    def state_table(self, batch: int, width: int, given: int = 0) -> Any:
        """The last inputs."""
        return kept(batch, self.samples, width)

    def __call__(self, params: Params, x: Array) -> Array:
        """x."""
        return x

    def stream(
        self, params: Params, x: Array, state: Any, given: int = 0, axis: str | None = None
    ) -> tuple[Array, Any]:
        """The inputs of `samples` before."""
        every, state = with_last(x, state, axis)
        return every[:, : x.shape[1]], state


@dataclasses.dataclass(frozen=True)
class Sequential(Node):
    """Nodes one after another.

    Attributes:
      nodes: the first one first; parameters and states are theirs by number.
    """

    nodes: tuple[Node, ...] = ()

    @property
    def ratio(self) -> Fraction:
        """The product of theirs."""
        return math.prod((node.ratio for node in self.nodes), start=Fraction(1))

    @property
    def multiple(self) -> int:
        """The least with which each has a multiple of its own."""
        found, ratio = 1, Fraction(1)
        for node in self.nodes:
            found = math.lcm(found, (node.multiple / ratio).numerator)
            ratio *= node.ratio
        return found

    @property
    def field(self) -> int:
        """What all of them see, in inputs of the first, rounded up."""
        beside, ratio = Fraction(0), Fraction(1)
        for node in self.nodes:
            beside += (node.field - 1) / ratio
            ratio *= node.ratio
        return 1 + math.ceil(beside)

    def delay(self, given: int = 0) -> int:
        """That of the last, which is given that of those before."""
        return functools.reduce(lambda late, node: node.delay(late), self.nodes, given)

    def features(self, width: int) -> int:
        """Those of the last."""
        return functools.reduce(lambda own, node: node.features(own), self.nodes, width)

    def table(self, width: int) -> Table:
        """Theirs, by number; nodes without parameters have none."""
        found = {}
        for number, node in enumerate(self.nodes):
            if own := node.table(width):
                found[str(number)] = own
            width = node.features(width)
        return found

    def state_table(self, batch: int, width: int, given: int = 0) -> Any:
        """Theirs."""
        found = []
        for node in self.nodes:
            found.append(node.state_table(batch, width, given))
            width, given = node.features(width), node.delay(given)
        return tuple(found)

    def __call__(self, params: Params, x: Array) -> Array:
        """One after another."""
        check_multiple(self, x, self.multiple)
        for number, node in enumerate(self.nodes):
            x = node(params.get(str(number), {}), x)
        return x

    def stream(
        self, params: Params, x: Array, state: Any, given: int = 0, axis: str | None = None
    ) -> tuple[Array, Any]:
        """One after another, each told how late its inputs are."""
        check_multiple(self, x, self.multiple)
        after = []
        for number, (node, own) in enumerate(zip(self.nodes, state, strict=True)):
            x, own = node.stream(params.get(str(number), {}), x, own, given, axis)
            given = node.delay(given)
            after.append(own)
        return x, tuple(after)


SUM, MEAN, CONCAT, PRODUCT = "sum", "mean", "concat", "product"


@dataclasses.dataclass(frozen=True)
class Parallel(Node):
    """Branches of one input, whose outputs meet; in a stream the faster ones wait.

    Attributes:
      branches: of one ratio; parameters and states are theirs by number.
      meet: "sum", "mean", "product" or "concat", of channels.
    """

    branches: tuple[Node, ...] = ()
    meet: str = SUM

    MEETINGS: ClassVar[tuple[str, ...]] = (SUM, MEAN, CONCAT, PRODUCT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.meet not in self.MEETINGS:
            raise UserError(f"Parallel.meet='{self.meet}' is not one of {', '.join(self.MEETINGS)}")
        ratios = {str(branch.ratio) for branch in self.branches}
        if len(ratios) != 1:
            raise UserError(
                f"Parallel: its branches give {', '.join(sorted(ratios)) or 'no'} outputs an "
                f"input: give one or more branches with the same strides"
            )

    @property
    def ratio(self) -> Fraction:
        """That of each branch."""
        return self.branches[0].ratio

    @property
    def multiple(self) -> int:
        """The least common one."""
        return math.lcm(*(branch.multiple for branch in self.branches))

    @property
    def field(self) -> int:
        """What the branches see together: at most the sum of what they see on each side."""
        late = max(Fraction(branch.delay()) for branch in self.branches) / self.ratio
        return max(branch.field for branch in self.branches) + math.ceil(late)

    def delay(self, given: int = 0) -> int:
        """That of the slowest."""
        return max(branch.delay(given) for branch in self.branches)

    def features(self, width: int) -> int:
        """Those of a branch; of all where channels are concatenated."""
        each = [branch.features(width) for branch in self.branches]
        return sum(each) if self.meet == CONCAT else each[0]

    def table(self, width: int) -> Table:
        """Theirs, by number.

        Raises:
          UserError: branches of unlike channels that do not concatenate.
        """
        each = {branch.features(width) for branch in self.branches}
        if self.meet != CONCAT and len(each) > 1:
            raise UserError(
                f"Parallel(meet='{self.meet}'): its branches have {sorted(each)} channels: give "
                f"all the same, or 'concat'"
            )
        tables = {str(number): each.table(width) for number, each in enumerate(self.branches)}
        return {number: own for number, own in tables.items() if own}

    def state_table(self, batch: int, width: int, given: int = 0) -> Any:
        """Theirs, and the outputs of the faster ones that wait."""
        return tuple(
            (
                branch.state_table(batch, width, given),
                wait.state_table(batch, branch.features(width)),
            )
            for branch, wait in zip(self.branches, self._waits(given), strict=True)
        )

    def _waits(self, given: int) -> tuple[Wait, ...]:
        """What each branch waits for the slowest, counted at their outputs."""
        slowest = self.delay(given)
        return tuple(Wait(slowest - branch.delay(given)) for branch in self.branches)

    def __call__(self, params: Params, x: Array) -> Array:
        """All of them, met."""
        pairs = enumerate(self.branches)
        return self._met([branch(params.get(str(number), {}), x) for number, branch in pairs])

    def stream(
        self, params: Params, x: Array, state: Any, given: int = 0, axis: str | None = None
    ) -> tuple[Array, Any]:
        """All of them, as late as the slowest."""
        made, after = [], []
        waits = self._waits(given)
        for number, (branch, wait, own) in enumerate(zip(self.branches, waits, state, strict=True)):
            y, inner = branch.stream(params.get(str(number), {}), x, own[0], given, axis)
            y, kept = wait.stream({}, y, own[1], 0, axis)
            made.append(y)
            after.append((inner, kept))
        return self._met(made), tuple(after)

    def _met(self, made: list[Array]) -> Array:
        if self.meet == CONCAT:
            return jnp.concatenate(made, axis=-1)
        if self.meet == PRODUCT:
            return math.prod(made[1:], start=made[0])
        total = sum(made[1:], start=made[0])
        return total / len(made) if self.meet == MEAN else total


def residual(*nodes: Node) -> Parallel:
    """x + the nodes one after another."""
    return Parallel((Sequential(nodes), Wait()))


def kept(batch: int, samples: int, width: int) -> Any:
    """The last inputs, as a table."""
    return Param((batch, samples, width), ("batch", None, None), zeros, cache=True)


def with_last(x: Array, state: Array, axis: str | None) -> tuple[Array, Array]:
    """The kept inputs with these behind them, and the last ones, which are kept then."""
    every = jnp.concatenate([collectives.left_halo(x, state, axis), x], axis=1)
    return every, collectives.from_last(every[:, x.shape[1] :], axis)


def check_multiple(node: Node, x: Array, multiple: int) -> None:
    if x.shape[1] % multiple or not x.shape[1]:
        raise UserError(
            f"{type(node).__name__}: {x.shape[1]} samples are no multiple of its strides, "
            f"{multiple}: give such a chunk"
        )
