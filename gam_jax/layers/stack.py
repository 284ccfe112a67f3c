"""A stack of equal layers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from gam_jax.layers import ladder
from gam_jax.layers.base import WHOLE, Carry, Layer, told
from gam_jax.layers.block import Block, HalfBlocks
from gam_jax.layers.in_order import gathered
from gam_jax.layers.ladder import InTwo, Pending, Stream
from gam_jax.params import Params, Table, stack
from gam_jax.units import UnitTable, within
from sharding import collectives, zero
from sharding.axes import Axes
from sharding.bounds import Count, Size
from sharding.pipeline import stages


class Apart(NamedTuple):
    """What a stack has, with separate arrays for each block, as decoding uses it.

    Those of a carry can be written to in place. A scan over blocks with one stacked carry copies a
    block's part out and back at every token, which for a KV cache is slow; and so are stacked
    parameters, of which a loop over tokens copies each block's part at every token.
    """

    blocks: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Stack(Layer):
    """`depth` equal blocks, one after another, as one `lax.scan` over stacked parameters.

    Attributes:
      block: the layer that repeats.
      depth: L.
      remat: recompute a block's insides in the backward pass instead of storing them. Where
        parameters are in shards, they are gathered again in the backward pass in any case.
      unroll: blocks in one turn of the scan. All of them is fastest on CPU, where what a turn
        leaves for the backward pass is copied into stacked arrays; one compiles soonest, and is
        what parameters in shards are given.
      ladder: so many last blocks read the stream one half block earlier, see `layers.ladder`; the
        parameters are the same. The block is a `Block` or a `Residual`, whose one step is then a
        half block.
    """

    block: Layer
    depth: Size
    remat: bool = False
    unroll: Size = 1
    ladder: Count = 0

    gathers = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ladder:
            return
        if self.ladder > self.depth:
            raise ValueError(f"Stack.ladder={self.ladder}: there are {self.depth} blocks")
        if not isinstance(self.block, HalfBlocks):
            kind = type(self.block).__name__
            raise ValueError(
                f"Stack.ladder={self.ladder} needs blocks of half blocks, a Block or a Residual: "
                f"this one is a {kind}"
            )
        if isinstance(self.block, Block) and self.block.norms == "post":
            raise ValueError(
                f"Stack.ladder={self.ladder}: norms='post' norms the whole stream after each half "
                f"block, so nothing can be read earlier; choose other norms"
            )

    @property
    def loops(self) -> bool:
        """It is one."""
        return True

    def table(self) -> Table:
        """The block's table with a leading axis `layer`."""
        return stack(self.block.table(), self.depth)

    def unit_table(self) -> UnitTable:
        """The block's; each layer may keep units of its own."""
        return within("", 1, self.block.unit_table(), "block")

    def carry_table(self, batch: int) -> Any:
        """The block's, with a leading axis `layer`."""
        return stack(self.block.carry_table(batch), self.depth)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Carry | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """Runs the blocks in order; layer i draws its randomness from fold_in(key, i).

        Given a carry or parameters `apart`, it is not a scan; the carry after is as the one before.
        Where a mesh axis splits the layers, its stages work in turn, and the
        carry is that of this device's own layers.
        """
        stream, after = self.run(params, self.begun(x), carry, axes, key=key, starts=starts)
        return ladder.ended(stream), after

    def begun(self, x: Float[Array, "B T D"]) -> Stream:
        """What the first block is given; `ladder.ended` makes the output of what the last gives."""
        return ladder.begun(x) if self.ladder else x

    def run(
        self,
        params: Params,
        stream: Stream,
        carry: Carry | None,
        axes: Axes,
        *,
        key: Array | None = None,
        starts: Array | None = None,
        before: Array | int = 0,
        depth: int | None = None,
        count: Array | None = None,
    ) -> tuple[Stream, Carry]:
        """All blocks or some of them.

        Args:
          params: of these.
          stream: see `begun`.
          carry: of these.
          axes: mesh axes.
          key: for dropout.
          starts: see `Layer.__call__`.
          before: blocks that stand before the first of these, in a stage of a pipeline.
          depth: how many these are; None: all.
          count: how many of these there are; the others are empty places, which hand on what they
            are given. None: all.
        """
        axis, own = axes.of("layer"), (key, starts)
        if axis is not None:
            places = self.depth // (axes.turns * collectives.axis_size(axis))

            def run(some: Params, x: Stream, carry: Carry, place: Array) -> tuple[Stream, Carry]:
                span = stages.span(place, places, axes.layers)
                return self._run(places, axes.within_stage, some, x, carry, *own, *span)

            return stages.in_turn(run, axis, axes.turns, params, stream, carry)
        some = self.depth if depth is None else depth
        lie_apart = isinstance(carry, Apart) or isinstance(params, Apart)
        if lie_apart or some < self.depth or count is not None:
            return self._run(some, axes, params, stream, carry, *own, before, count)
        return self._all(axes, params, stream, carry, *own)

    def _run(self, depth: int, axes: Axes, *given: Any) -> tuple[Stream, Carry]:
        """Blocks of which it is seen as they run whether they read early, where only some do."""
        early = None if 0 < self.ladder < self.depth else bool(self.ladder)
        return _run_blocks(self, depth, early, axes, *given)

    def _all(
        self, axes: Axes, params: Params, stream: Stream, carry: Carry | None, *own: Any
    ) -> tuple[Stream, Carry]:
        """All blocks; those that read early in a loop of their own, where nothing waits."""
        plain = self.depth - self.ladder
        if self.ladder in (0, self.depth):
            return self._run(self.depth, axes, params, stream, carry, *own, 0, None)
        after = []
        for start, some in ((0, plain), (plain, self.ladder)):
            part, begin = jax.tree.map(lambda x: x[start : start + some], (params, carry))  # noqa: B023
            given = axes, part, stream, begin, *own, start, None
            stream, new = _run_blocks(self, some, start > 0, *given)
            after.append(new)
        return stream, jax.tree.map(lambda *x: jnp.concatenate(x), *after)

    def apart(self, carry: Any, part: Callable[[Any, int], Any]) -> Apart:
        """A carry or parameters, each block's by itself."""

        def own(i: int) -> Carry:
            return jax.tree.map(lambda x: part(x, i), carry)

        return Apart(tuple(self.block.apart(own(i), part) for i in range(self.depth)))

    def experts_apart(self, params: Any, take: Callable[[Any, int], Any]) -> Any:
        """Of each block, where these are `Apart`; stacked ones stay."""
        if not isinstance(params, Apart):
            return params
        return Apart(tuple(self.block.experts_apart(own, take) for own in params.blocks))


# Compiled once for a stack, so that a call outside jax.jit does not compile its scan anew.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run_blocks(
    stack: Stack,
    depth: int,
    early: bool | None,
    axes: Axes,
    params: Params,
    stream: Stream,
    carry: Carry | None,
    key: Array | None,
    starts: Array | None,
    before: Array | int,
    count: Array | None,
) -> tuple[Stream, Carry]:
    def step(h: Stream, layer: tuple[Params, Carry, Any]) -> tuple[Stream, Carry]:
        block_params, block_carry, index = layer
        if count is None:
            return of_block(h, block_params, block_carry, index)
        # What is computed in an empty place has no gradient, whatever it is.
        there = index - before < count
        block_params, x = jax.tree.map(
            lambda p: jnp.where(there, p, lax.stop_gradient(p)), (block_params, h)
        )
        y, after = of_block(x, block_params, block_carry, index)
        return jax.tree.map(lambda y, h: jnp.where(there, y, h), y, h), after

    def of_block(
        h: Stream, block_params: Params, block_carry: Carry, index: Any
    ) -> tuple[Stream, Carry]:
        block_key = None if key is None else jax.random.fold_in(key, index)
        block: Any = stack.block
        own = gathered(block, block_params)
        if not isinstance(h, Pending):
            return block(own, h, block_carry, axes, key=block_key, **told(starts))
        soon = index >= stack.depth - stack.ladder if early is None else early
        in_two = InTwo(h, soon)
        found, after = block.through(own, in_two, block_carry, axes, key=block_key, starts=starts)
        return found.stream, after

    if isinstance(carry, Apart) or isinstance(params, Apart):
        each: Any = params if isinstance(params, Apart) else stack.apart(params, lambda p, i: p[i])
        own = carry.blocks if isinstance(carry, Apart) else _cut(carry, depth)
        # Blocks that differ in nothing are traced and lowered once; compilers put them in place.
        one, after = step if early is None else jax.jit(step), []
        for i, both in enumerate(zip(each.blocks, own, strict=True)):
            stream, new = one(stream, (*both, i))
            after.append(new)
        if isinstance(carry, Apart):
            return stream, Apart(tuple(after))
        return stream, jax.tree.map(lambda *x: jnp.stack(x), *after)
    # Outside a loop, compilers may see that a gathering is done twice, and keep what was gathered.
    unroll = 1 if zero.has_shards(params) else stack.unroll
    if stack.remat:
        step = jax.checkpoint(step, prevent_cse=unroll > 1)
    elif zero.has_shards(params) and not stack.block.loops:
        step = jax.checkpoint(step, prevent_cse=False, policy=zero.keeps)
    layers = before + jnp.arange(depth)
    return lax.scan(step, stream, (params, carry, layers), unroll=min(unroll, depth))


def _cut(carry: Carry | None, depth: int) -> list[Carry | None]:
    """Each block's part of a stacked carry."""
    return [jax.tree.map(lambda x, i=i: x[i], carry) for i in range(depth)]
