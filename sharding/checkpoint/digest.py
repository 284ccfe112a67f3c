"""A checksum of an array's values that does not depend on how the array is cut.

The digest of an array x of shape [n_1, ..., n_k] is

  sum over i of bits(x[i]) * r_1[i_1] * ... * r_k[i_k]   modulo 2^64,

bits being the number that the bytes of an element spell, and r_d odd 64-bit numbers drawn for
dimension d. A sum does not care for order, so each process adds up its own shards, and the total
is the same on every mesh. One changed element always changes the digest (an odd number divides
nothing out of 2^64); any other damage keeps it with a probability of about 2^-32 at worst. It is
a checksum against accidents, not against forgery.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

_MODULUS = 1 << 64


def digest(array: np.ndarray, start: Sequence[int] | None = None) -> int:
    """The sum above over a part of an array.

    Args:
      array: the part, of any dtype of 1, 2, 4 or 8 bytes.
      start: where in the whole it begins; at its beginning if not given.
    """
    array = np.asarray(array, order="C")
    bits = array.reshape(-1).view(f"u{min(array.itemsize, 4)}")
    shape = array.shape if array.itemsize <= 4 else (*array.shape, 2)
    start = [0] * len(shape) if start is None else [*start, *[0] * (len(shape) - len(start))]
    total = bits.reshape(shape)
    for dim in reversed(range(len(shape))):
        factors = _odd(dim, start[dim] + shape[dim])[start[dim] :]
        total = np.einsum("...i,i->...", total, factors, dtype=np.uint64, casting="unsafe")
    return int(total) % _MODULUS


def add(parts: Sequence[int]) -> int:
    """The digest of a whole from those of its parts."""
    return sum(parts) % _MODULUS


def shown(value: int) -> str:
    """As it is written: 16 hexadecimal digits."""
    return f"{value:016x}"


def _odd(dim: int, size: int) -> np.ndarray:
    """The first `size` or more of r_dim, uint64."""
    return _drawn(dim, 1 << max(size - 1, 0).bit_length())[:size]


@functools.lru_cache(64)
def _drawn(dim: int, size: int) -> np.ndarray:
    """SplitMix64 (Steele, Lea, Flood 2014) of the positions, made odd."""
    x = np.arange(1, size + 1, dtype=np.uint64) + np.uint64(dim << 40)
    x = x * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))) | np.uint64(1)
