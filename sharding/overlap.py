"""A product and its collective at the same time, in n steps of a ring.

A device multiplies the tokens that it has while it sends them on, or adds what it was sent to what
it has just multiplied. No step's product waits for the message of the same step, so a compiler may
do both at once (Wang et al., ASPLOS 2023; T3, arXiv 2401.16677, is the ideal that hardware comes
near). Bytes are those of the gather or the scatter. Called from the program of one device, inside
`jax.shard_map(check_vma=True)`.

In the shapes below T is all tokens, t = T / n those of one device of n.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sharding import collectives

RING = "ring"
TWO_WAY = "two_way"
OVERLAPS = ("none", RING, TWO_WAY)
"""Nothing at once; in one ring; in two rings, half of each device's tokens either way."""

Given = TypeVar("Given")
Map = Callable[[Given, Array], Any]
"""(parameters, [B, s, ...]) -> a tree of [B, s, ...], each token alone, for any s."""


def gather_map(
    function: Map[Given], params: Given, x: Float[Array, "B t ..."], axis: str, way: str = RING
) -> Any:
    """function(params, the tokens of all devices), without a gather: a tree of [B, T, ...].

    In step s device i has the tokens of device i + s, and sends them to device i - 1. The backward
    pass is `map_scatter` the other way round. Bit for bit it is the function of the gathered
    tokens.

    Args:
      function: of each token alone, such as products.
      params: what it needs besides, a tree of arrays; cast to vary over `axis` once.
      x: this device's tokens.
      axis: the mesh axis of n devices.
      way: "ring" or "two_way".
    """
    params = _varying(params, axis)
    x = collectives.as_varying(x, axis)
    found = [_gathered(function, params, part, axis, sign) for part, sign in _parts(x, way, axis=1)]
    return jax.tree.map(lambda *parts: _joined(jnp.concatenate(parts, axis=2)), *found)


def map_scatter(
    function: Map[Given], params: Given, x: Float[Array, "B T ..."], axis: str, way: str = RING
) -> Float[Array, "B t ..."]:
    """The sum over devices of function(params, x), of which each keeps its own tokens.

    In step s device i works on the tokens of device i + s + 1, adds the sum that it was sent, and
    sends it to device i - 1. The backward pass is `gather_map` the other way round.

    Args:
      function: of each token alone; gives one array, this device's part of a sum.
      params: as in `gather_map`.
      x: all tokens, as this device has them.
      axis: as in `gather_map`.
      way: as in `gather_map`.
    """
    params = _varying(params, axis)
    size = lax.axis_size(axis)
    x = collectives.as_varying(x, axis)
    x = x.reshape(x.shape[0], size, x.shape[1] // size, *x.shape[2:])
    found = [
        _scattered(function, params, part, axis, sign) for part, sign in _parts(x, way, axis=2)
    ]
    return jnp.concatenate(found, axis=1)


def _parts(x: Array, way: str, axis: int) -> list[tuple[Array, int]]:
    """What goes one way (1), and the other (-1): tokens are cut in two where that is asked."""
    tokens = x.shape[axis]
    if way == RING or tokens == 1:
        return [(x, 1)]
    first, second = jnp.split(x, [tokens // 2], axis)
    return [(first, 1), (second, -1)]


def _gathered(function: Map[Given], params: Given, x: Array, axis: str, sign: int) -> Any:
    """[B, n, t, ...] of the tokens of device 0, 1, ...; the ring turns as the sign says."""
    size, own = lax.axis_size(axis), lax.axis_index(axis)
    found = []
    for step in range(size):
        sent = _sent(x, axis, sign) if step + 1 < size else x
        found.append(function(params, x))
        x = sent

    def in_order(*blocks: Array) -> Array:  # of device i, i + 1, ...; or of i, i - 1, ...
        stacked = jnp.stack(blocks[::sign], axis=1)
        return jnp.roll(stacked, own if sign == 1 else own + 1, axis=1)

    return jax.tree.map(in_order, *found)


def _scattered(function: Map[Given], params: Given, x: Array, axis: str, sign: int) -> Array:
    """This device's tokens [B, t, ...] of the sum, from [B, n, t, ...]."""
    size, own = lax.axis_size(axis), lax.axis_index(axis)
    shift = -own - 1 if sign == 1 else -own  # so that device i + 1, or i, comes first
    blocks = jnp.split(jnp.roll(x, shift, axis=1), size, axis=1)[::sign]
    total = function(params, blocks[0][:, 0])
    for block in blocks[1:]:
        total = _sent(total, axis, sign) + function(params, block[:, 0])
    return total


def _sent(x: Array, axis: str, sign: int) -> Array:
    size = lax.axis_size(axis)
    return lax.ppermute(x, axis, [(i, (i - sign) % size) for i in range(size)])


def _joined(x: Array) -> Array:
    """[B, T, ...] from [B, n, t, ...]."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])


def _varying(tree: Given, axis: str) -> Given:
    """Parameters cast at the door, so that the gradient of one is summed over devices once."""
    return jax.tree.map(lambda p: collectives.as_varying(p, axis), tree)
