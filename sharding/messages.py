"""The collectives of a program, counted in its jaxpr and in its compiled form."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

from sharding import cost


@dataclasses.dataclass(frozen=True)
class Message:
    """Equal collectives of a program.

    Attributes:
      collective: all_reduce, all_gather, reduce_scatter, all_to_all or permute.
      axes: the mesh axes that it goes over.
      devices: how many lie along them.
      size: bytes of the operand on one device.
      count: how often it happens when the program runs once.
    """

    collective: str
    axes: tuple[str, ...]
    devices: int
    size: int
    count: int = 1

    @property
    def sent(self) -> int:
        """Bytes that a device sends for all of them."""
        return self.count * cost.SENT[self.collective](self.size, self.devices)

    def times(self, count: int) -> Message:
        """The same, that many times as often."""
        return dataclasses.replace(self, count=self.count * count)


@dataclasses.dataclass(frozen=True)
class Total:
    """Messages of one kind: how many, and bytes that a device sends for them."""

    count: int = 0
    sent: int = 0


Kind = tuple[str, tuple[str, ...]]
"""Collective and mesh axes."""


def totals(messages: Iterable[Message]) -> dict[Kind, Total]:
    """Count and bytes by collective and mesh axes; those that send nothing are left out."""
    found: dict[Kind, Total] = {}
    for message in messages:
        if message.devices > 1 and message.count:
            kind = message.collective, message.axes
            old = found.get(kind, Total())
            found[kind] = Total(old.count + message.count, old.sent + message.sent)
    return dict(sorted(found.items()))


PRIMITIVES = {
    "psum": "all_reduce",
    "psum_invariant": "all_reduce",
    "pmax": "all_reduce",
    "pmin": "all_reduce",
    "all_gather": "all_gather",
    "all_gather_invariant": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "all_to_all": "all_to_all",
    "ppermute": "permute",
}


def messages_of(function: Callable[..., Any], *args: Any) -> list[Message]:
    """What `function` sends when it runs once, without running or compiling it.

    What no result depends on is left out, as compilers do.

    Args:
      function: that uses `jax.shard_map`.
      *args: abstract or real.

    Raises:
      ValueError: a collective in a `while` loop, whose turns nobody can count.
    """
    closed = jax.make_jaxpr(function)(*args)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _merged(_walk(jaxpr, {}))


def _merged(messages: Iterable[Message]) -> list[Message]:
    counts: collections.Counter[Message] = collections.Counter()
    for message in messages:
        counts[dataclasses.replace(message, count=1)] += message.count
    return [message.times(count) for message, count in counts.items()]


def _walk(jaxpr: Any, sizes: Mapping[str, int]) -> Iterator[Message]:
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name in PRIMITIVES:
            yield from messages_at(eqn, sizes)
            continue
        if name == "shard_map":
            sizes = dict(params["mesh"].shape)
        inner = [message for part in inner_jaxprs(eqn) for message in _walk(part, sizes)]
        if name == "while" and inner:
            raise ValueError("a collective in a while loop cannot be counted: use lax.scan")
        if name == "cond":
            branches = [_merged(_walk(part, sizes)) for part in inner_jaxprs(eqn)]
            inner = max(branches, key=lambda found: sum(message.sent for message in found))
        turns = params["length"] if name == "scan" else 1
        yield from (message.times(turns) for message in inner)


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """The jaxprs inside an equation: of a loop's body, a branch, a called function."""
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "jaxpr"):
                yield part.jaxpr
            elif hasattr(part, "eqns"):
                yield part


def messages_at(eqn: Any, sizes: Mapping[str, int]) -> Iterator[Message]:
    """What one equation sends that is one of `PRIMITIVES`, on a mesh of these sizes."""
    names = eqn.params.get("axes", eqn.params.get("axis_name"))
    axes = tuple(names) if isinstance(names, (tuple, list)) else (names,)
    devices = math.prod(sizes[axis] for axis in axes)
    for operand in eqn.invars:
        size = math.prod(operand.aval.shape) * operand.aval.dtype.itemsize
        yield Message(PRIMITIVES[eqn.primitive.name], axes, devices, size)


_OPERATIONS = {
    "all-reduce": "all_reduce",
    "all-gather": "all_gather",
    "reduce-scatter": "reduce_scatter",
    "all-to-all": "all_to_all",
    "collective-permute": "permute",
}
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(
    r"= (?P<shape>\(.*?\)|\S+) (?P<name>" + "|".join(_OPERATIONS) + r")(?P<start>-start)?\("
)
_ARRAY = re.compile(r"(pred|[a-z]+\d+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:body|to_apply|calls|condition)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"= [su]\d+\[\]\S* constant\((\d+)\)")
_CHAIN = re.compile(r'chain_id="(\w+)"')
"""A TPU's compiler writes a collective that overlaps with products into each of these, under one
number: each sends a part of it."""

Bodies = Mapping[str, list[str]]
"""Lines of the computations of a compiled program."""
_Found = tuple[str, Message]
"""A message, and the number that its parts have in common; "" for one that is whole."""


def compiled_messages(text: str) -> list[Message]:
    """What a compiled program sends when it runs once, from its text (`compiled.as_text()`).

    Compilers merge collectives and forget the names of axes, so counts are smaller than in the
    jaxpr and axes are (); bytes by collective and number of devices are comparable. A TPU's
    compiler also makes one collective of another (of a reduce-scatter an all-reduce) and sends
    arrays as they lie in tiles, so that of its programs the kinds alone are.

    A loop turns as often as its text says or, if that says nothing, as the one constant of its
    condition.

    Raises:
      ValueError: a collective in a loop whose turns the text does not tell.
    """
    entry, bodies = "", collections.defaultdict(list)
    name = ""
    for line in text.splitlines():
        if (header := _HEADER.match(line)) and not line.startswith(" "):
            name = header.group(1)
            entry = name if line.startswith("ENTRY") else entry
        elif name:
            bodies[name].append(line)
    return _merged(message for _, message in _walk_compiled(entry, bodies))


def _walk_compiled(name: str, bodies: Bodies) -> list[_Found]:
    every: list[_Found] = []
    for line in bodies.get(name, ()):
        if found := _COLLECTIVE.search(line):
            chain = _CHAIN.search(line)
            every.append((chain[1] if chain else "", _compiled_message(line, found)))
            continue
        inner = [one for called in _CALLED.findall(line) for one in _walk_compiled(called, bodies)]
        turns = _turns(line, bodies) if " while(" in line and inner else 1
        every += [(chain, message.times(turns)) for chain, message in inner]
    known: set[str] = set()
    return [one for one in every if not one[0] or not (one[0] in known or known.add(one[0]))]


def _turns(line: str, bodies: Bodies) -> int:
    """How often a loop turns."""
    if trips := _TRIPS.search(line):
        return int(trips[1])
    condition = _CONDITION.search(line)
    lines = bodies.get(condition[1], ()) if condition else ()
    counts = {count for line in lines for count in _CONSTANT.findall(line)}
    if len(counts) != 1:
        raise ValueError(f"a collective in a loop of unknown length: {line.strip()[:80]}")
    return int(counts.pop())


def _compiled_message(line: str, found: re.Match[str]) -> Message:
    collective = _OPERATIONS[found["name"]]
    arrays = _ARRAY.findall(found["shape"])
    if found["start"]:
        arrays = arrays[: len(arrays) // 2] or arrays  # (operands, results)
    size = sum(_bytes(kind, dims) for kind, dims in arrays)
    devices = 2 if collective == "permute" else _group(line)
    if collective == "all_gather" and not found["start"]:
        size //= devices  # the result is what the text shows
    if collective == "reduce_scatter" and not found["start"]:
        size *= devices  # likewise; one that starts shows its operand first
    return Message(collective, (), devices, size)


def _bytes(kind: str, dims: str) -> int:
    bits = 8 if kind == "pred" else int(re.sub(r"\D", "", kind))
    return int(np.prod([int(d) for d in dims.split(",") if d], dtype=np.int64)) * bits // 8


def _group(line: str) -> int:
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed.group(1).split(","))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(counted.group(1))
    if named := re.search(r"replica_groups=mesh\[(.*?)\].*? \{(.*?)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named.group(1))}
        over = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named.group(2))  # whole, or a part
        return math.prod(int(part) if part else sizes[name] for name, part in over)
    raise ValueError(f"a collective without groups: {line.strip()[:80]}")
