"""A balanced order of a causal sequence over devices.

In order, the last of n shards sees n times as many keys as the first. In zigzag order the sequence
is cut into 2 n pieces and device r holds the pieces r and 2 n - 1 - r, so that all see as many
(zhuzilin/ring-flash-attention; Llama 3, arXiv 2407.21783, section 3.3.2).

Called from the program of one device, inside `jax.shard_map(check_vma=True)`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from sharding import collectives


def to_zigzag(x: Array, axis: str | None, dim: int) -> Array:
    """This device's pieces r and 2 n - 1 - r, from its shard in order. Sends two half shards.

    Raises:
      ValueError: a shard that cannot be halved.
    """
    if axis is None:
        return x
    even, odd = _halves(collectives.as_varying(x, axis), dim)
    even, odd = (lax.ppermute(p, axis, _moves(axis, i)) for i, p in enumerate((even, odd)))
    return _sorted(even, odd, axis, dim)


def from_zigzag(x: Array, axis: str | None, dim: int) -> Array:
    """The inverse of `to_zigzag`."""
    if axis is None:
        return x
    even, odd = _halves(_sorted(*_halves(collectives.as_varying(x, axis), dim), axis, dim), dim)
    back = [[(to, origin) for origin, to in _moves(axis, i)] for i in range(2)]
    even, odd = (lax.ppermute(p, axis, b) for p, b in zip((even, odd), back, strict=True))
    return jnp.concatenate([even, odd], axis=dim)


def _moves(axis: str, parity: int) -> list[tuple[int, int]]:
    """Where the pieces 2 r + parity of the devices r go."""
    size = lax.axis_size(axis)
    pieces = [2 * r + parity for r in range(size)]
    return [(r, p if p < size else 2 * size - 1 - p) for r, p in enumerate(pieces)]


def _sorted(even: Array, odd: Array, axis: str, dim: int) -> Array:
    """A device of even index holds its even piece first, others their odd one."""
    swap = lax.axis_index(axis) % 2 == 1
    pair = jnp.where(swap, odd, even), jnp.where(swap, even, odd)
    return jnp.concatenate(pair, axis=dim)


def _halves(x: Array, dim: int) -> tuple[Array, Array]:
    if x.shape[dim] % 2:
        raise ValueError(
            f"a shard of {x.shape[dim]} tokens cannot be halved, as attention balanced over "
            f"devices needs: choose a window that twice the seq axis divides"
        )
    first, second = jnp.split(x, 2, axis=dim)
    return first, second
