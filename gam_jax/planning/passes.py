"""What a program that serves multiplies, reads, writes and sends, its arguments among it.

A step of training reads its parameters once and computes for long. A step that writes a token of
few rows does little else than read parameters and states, so here every array that is read counts,
whoever made it, and what is written in place counts as what is written.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jax.extend import core

from gam_jax.planning.live import FUSED, LOOPS, REDUCED, SHAPES, Equation, written_out
from sharding.messages import PRIMITIVES, Message, messages_at
from sharding.opaque import NAME as OPAQUE
from sharding.products import own_flops, turns_of

PARTS = ("slice", "dynamic_slice", "gather")
"""What reads a part of an array, as large as its result, where compilers read that part alone."""
READ = frozenset((*FUSED, "gather"))
"""What is computed within whatever reads it."""
Sources = Mapping[int, float]
"""Bytes that are read to compute a value, by the arrays that they are read from."""


@dataclasses.dataclass(frozen=True)
class Passes:
    """What a program does on one device when it runs once.

    Attributes:
      flops: operations in products, by the dtype of their factors.
      product_bytes: that products read and write.
      other_bytes: that everything else reads and writes.
      messages: that the device sends.
    """

    flops: Mapping[str, float]
    product_bytes: float
    other_bytes: float
    messages: tuple[Message, ...]

    def beyond(self, other: Passes, times: float) -> Passes:
        """other + times x (self - other): what grows evenly from `other`, where that is 0, to self.

        Messages are whole: `times` is too where they differ.
        """

        def of(one: float, first: float) -> float:
            return first + times * (one - first)

        sent, before = ({_kind(m): m.count for m in each.messages} for each in (self, other))
        counts = {kind: of(sent.get(kind, 0), before.get(kind, 0)) for kind in {**before, **sent}}
        return Passes(
            {
                dtype: of(self.flops.get(dtype, 0.0), other.flops.get(dtype, 0.0))
                for dtype in {**other.flops, **self.flops}
            },
            of(self.product_bytes, other.product_bytes),
            of(self.other_bytes, other.other_bytes),
            tuple(kind.times(round(count)) for kind, count in counts.items()),
        )


def _kind(message: Message) -> Message:
    return dataclasses.replace(message, count=1)


class _Sum:
    """What is gathered on the way: of loops that turn with a row's context, and of all else."""

    def __init__(self) -> None:
        self.flops: dict[str, float] = collections.defaultdict(float)
        self.bytes = {True: 0.0, False: 0.0}
        self.messages: collections.Counter[Message] = collections.Counter()
        self.turns = 0

    def add(self, other: _Sum) -> None:
        """Adds another one."""
        for dtype, count in other.flops.items():
            self.flops[dtype] += count
        for product, moved in other.bytes.items():
            self.bytes[product] += moved
        self.messages.update(other.messages)
        self.turns = max(self.turns, other.turns)

    @property
    def told(self) -> Passes:
        """As it is handed on."""
        messages = tuple(m.times(count) for m, count in self.messages.items())
        return Passes(dict(self.flops), self.bytes[True], self.bytes[False], messages)


@dataclasses.dataclass(frozen=True)
class Followed:
    """What a program does, part by part.

    Attributes:
      fixed: whatever its rows have read before.
      most: where rows have read as much as they can: loops over growing arrays turn for all.
      turns: of such a loop then; 0 where there is none.
    """

    fixed: Passes
    most: Passes
    turns: int


def follow(jaxpr: Any, sizes: Mapping[str, int], growing: Collection[int] = ()) -> Followed:
    """Follows a program of one device from its arguments to its results.

    Results that were computed element by element are read by others without being written, see
    `gam_jax.planning.live`. Of what `lax.cond` chooses by a device's place alone, the branch that
    moves most counts, of what it chooses by data the one that moves least: that is how programs
    leave out what nobody has asked for.

    Args:
      jaxpr: open, what is inside `jax.shard_map`; without what no result depends on.
      sizes: of the mesh.
      growing: places of the arguments that are read as far as rows have filled them.

    Raises:
      ValueError: a collective in a loop whose turns nobody can count.
    """
    walk = _Walk(sizes)
    given: list[Sources] = [walk.array(_bytes(v.aval)) for v in jaxpr.invars]
    walk.growing = {array for place in growing for array in given[place]}
    fixed, grown = _Sum(), _Sum()
    walk.follow(jaxpr, given, 1.0, fixed, grown)
    without = fixed.told
    fixed.add(grown)
    return Followed(without, fixed.told, fixed.turns)


class _Walk:
    """The arrays of a program by number, and what each equation does with them."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes, self._numbers = sizes, 0
        self.growing: set[int] = set()
        self._placed: set[int] = set()  # numbers by the device's place and constants alone

    def array(self, size: float) -> Sources:
        """A new array."""
        self._numbers += 1
        return {self._numbers: size}

    def follow(
        self, jaxpr: Any, given: Sequence[Sources], turns: float, fixed: _Sum, grown: _Sum
    ) -> list[Sources]:
        """Adds what a jaxpr does, so many times; returns what its results are read from."""
        env: dict[Any, Any] = {}
        eqns = list(written_out(jaxpr, env))
        outs = [None if isinstance(v, core.Literal) else env.get(v, v) for v in jaxpr.outvars]
        needed = {v for v in outs if v is not None}
        for eqn in eqns:
            if eqn.name not in READ and eqn.name not in REDUCED:
                needed.update(v for v in eqn.inputs if v is not None)
        readers = collections.Counter(v for eqn in eqns for v in {*eqn.inputs})
        often = {v for v, count in readers.items() if count > 1}
        values: dict[Any, Sources] = dict(zip(jaxpr.invars, given, strict=True))
        for eqn in eqns:
            inputs = [{} if v is None else values.get(v, {}) for v in _inputs(eqn)]
            if eqn.name in LOOPS:
                made = self._loop(eqn, inputs, turns, fixed, grown)
            else:
                made = self._one(eqn, inputs, needed, often, turns, fixed)
            values.update(zip(eqn.outputs, made, strict=True))
        return [{} if v is None else values.get(v, {}) for v in outs]

    def _one(
        self,
        eqn: Equation,
        inputs: list[Sources],
        needed: set[Any],
        often: set[Any],
        turns: float,
        found: _Sum,
    ) -> list[Sources]:
        """Adds an equation that is no loop; returns what each of its results is read from.

        What is computed from several arrays and read more than once is written, as a residual
        stream is, if that is no more than to read all of them again.
        """
        size = sum(_bytes(v.aval) for v in eqn.outputs)
        if eqn.name in SHAPES:
            return [_read(inputs)] * len(eqn.outputs)
        if eqn.name == "dynamic_update_slice" or eqn.name.startswith("scatter"):
            new = eqn.eqn.invars[1 if eqn.name == "dynamic_update_slice" else 2]
            found.bytes[False] += turns * (sum(_read(inputs[1:]).values()) + _bytes(new.aval))
            return [inputs[0] or self.array(size)]
        if eqn.name in PARTS:
            part = size / max(_bytes(eqn.eqn.invars[0].aval), 1)
            inputs = [{array: part * x for array, x in inputs[0].items()}, *inputs[1:]]
        read = _read(inputs)
        if eqn.name in READ and needed.isdisjoint(eqn.outputs):
            shared = not often.isdisjoint(eqn.outputs) and len(read) > 1
            if not (shared and size <= sum(read.values())):
                return [read] * len(eqn.outputs)
        flops = own_flops(eqn.eqn)
        found.bytes[bool(flops)] += turns * (sum(read.values()) + size)
        if flops:
            factor = eqn.eqn.invars[-1 if eqn.name == OPAQUE else 0]
            found.flops[str(factor.aval.dtype)] += turns * flops
        if eqn.name in PRIMITIVES:
            for message in messages_at(eqn.eqn, self._sizes):
                found.messages[_kind(message)] += round(turns) * message.count
        made = [self.array(_bytes(v.aval)) for v in eqn.outputs]
        number = not any(v.aval.shape for v in eqn.outputs)  # no list of them that a loop takes
        if number and eqn.name in READ and self._placed.issuperset(read):
            self._placed.update(array for each in made for array in each)
        return made

    def _loop(
        self, eqn: Equation, outer: list[Sources], turns: float, fixed: _Sum, grown: _Sum
    ) -> list[Sources]:
        """Adds a loop, or the branch of a choice that counts."""
        params, name = eqn.eqn.params, eqn.name
        made = [self.array(_bytes(v.aval)) for v in eqn.outputs]
        if name == "cond":
            sums = [(_Sum(), _Sum()) for _ in params["branches"]]
            for branch, pair in zip(params["branches"], sums, strict=True):
                self.follow(branch.jaxpr, outer[1:], turns, *pair)
            choose = max if self._placed.issuperset(outer[0]) else min
            chosen = choose(sums, key=lambda pair: sum(pair[0].bytes.values()))
            fixed.add(chosen[0])
            grown.add(chosen[1])
            return made
        times, count = turns_of(eqn.eqn), len(made)
        if name == "scan":
            consts, carried = params["num_consts"], params["num_carry"]
            each = [
                {array: x / max(times or 1, 1) for array, x in source.items()}
                for source in outer[consts + carried :]
            ]
            body, given = params["jaxpr"].jaxpr, [*outer[:consts], *made[:carried], *each]
            grows = False
        else:
            first = params["cond_nconsts"]
            consts = outer[first : first + params["body_nconsts"]]
            body, given = params["body_jaxpr"].jaxpr, [*consts, *made[:count]]
            grows = any(self.growing & set(source) for source in outer)
        own = (grown, grown) if grows else (fixed, grown)
        before = sum(sum(each.messages.values()) for each in own)
        self.follow(body, given, turns * (times or 1), *own)
        if name == "while" and sum(sum(each.messages.values()) for each in own) > before:
            raise ValueError("a collective in a while loop cannot be counted: use lax.scan")
        if grows:
            grown.turns = max(grown.turns, times or 1)
        return made


def _inputs(eqn: Equation) -> list[Any]:
    """The inputs of an equation, None for literals."""
    left = list(eqn.inputs)
    return [None if isinstance(v, core.Literal) else left.pop(0) for v in eqn.eqn.invars]


def _read(inputs: Sequence[Sources]) -> dict[int, float]:
    """All that is read; of what is read twice the most."""
    found: dict[int, float] = {}
    for source in inputs:
        for array, size in source.items():
            found[array] = max(size, found.get(array, 0.0))
    return found


def _bytes(aval: Any) -> float:
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 4)
