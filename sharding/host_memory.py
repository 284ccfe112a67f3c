"""Arrays of a run that lie in the host's memory between steps, and how a step uses them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax
from jaxtyping import Array

from sharding.errors import UserError
from sharding.messages import inner_jaxprs

HOST, DEVICE = "pinned_host", "device"
"""Kinds of memory: of the host, from which devices copy without its processor; of a device."""
ALL = "all"


def share(text: str, field: str = "parallel.offload") -> float:
    """The share of numbers that is to lie in the host's memory: "all", a number, or "" for none.

    Raises:
      UserError: it is neither, or not above 0 and at most 1.
    """
    if not text:
        return 0.0
    try:
        found = 1.0 if text == ALL else float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise UserError(f"{field}={text}: give {ALL}, or a share above 0 and at most 1, as 0.5")
    return found


def check_kinds(text: str, platform: str, kinds: Collection[str]) -> None:
    """Raises a UserError if arrays are to lie in a host's memory that devices cannot copy from.

    Args:
      text: see `share`.
      platform: of the devices, as "cpu".
      kinds: of memory that they have, see `kinds_of`.
    """
    if text and HOST not in kinds:
        raise UserError(
            f"parallel.offload={text}: devices of '{platform}' have no memory of kind {HOST}, only "
            f"{', '.join(sorted(kinds)) or 'none'}: leave it out"
        )


def kinds_of(device: Any) -> set[str]:
    """The kinds of memory that a device has."""
    return {memory.kind for memory in device.addressable_memories()}


def chosen(sizes: Sequence[int], wanted: float) -> list[bool]:
    """Which arrays go: the largest ones, whole, until they hold the wanted share of all numbers."""
    total, found, have = sum(sizes), [False] * len(sizes), 0
    for place in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if have >= wanted * total:
            break
        found[place], have = True, have + sizes[place]
    return found


def fetched(tree: Any, lies: Any) -> Any:
    """What lies in the host's memory, on the devices; other arrays as they are.

    Args:
      tree: of arrays, inside `jax.jit`.
      lies: a NamedSharding for each.
    """

    def one(x: Array, where: Any) -> Array:
        return jax.device_put(x, where.with_memory_kind(DEVICE)) if on_host(where) else x

    return jax.tree.map(one, tree, lies)


def returned(tree: Any, lies: Any) -> Any:
    """The inverse of `fetched`."""
    return jax.tree.map(lambda x, w: jax.device_put(x, w) if on_host(w) else x, tree, lies)


def on_host(where: Any) -> bool:
    """Whether an array that lies so is in the host's memory."""
    return where.memory_kind == HOST


def copied(jaxpr: Any) -> dict[str, int]:
    """Bytes on one device that a program copies to each kind of memory when it runs once.

    Args:
      jaxpr: of the program, open.

    Raises:
      ValueError: a copy in a loop.
    """
    found: dict[str, int] = dict.fromkeys((HOST, DEVICE), 0)
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "device_put":
            for x, where in zip(eqn.outvars, eqn.params["devices"], strict=True):
                if getattr(where, "memory_kind", None) not in found:
                    continue  # a constant, say
                part = where.shard_shape(x.aval.shape)
                size = jax.ShapeDtypeStruct(part, x.aval.dtype)
                found[where.memory_kind] += size.size * size.dtype.itemsize
            continue
        for inner in inner_jaxprs(eqn):
            more = copied(inner)
            if any(more.values()) and eqn.primitive.name in ("scan", "while"):
                raise ValueError("a copy between kinds of memory in a loop is not counted")
            found = {kind: size + more[kind] for kind, size in found.items()}
    return found
