"""Sums by group of the products of rows, by the kernel of JAX for TPUs, compiled by Mosaic.

Source: jax.experimental.pallas.ops.tpu.megablox (JAX 0.10.2), after MegaBlocks (arXiv 2211.15841).
"""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sharding.opaque import opaque

ROWS, COLUMNS = 128, 512
"""Of a tile: rows of the operands, and at most so many of their columns."""
DTYPES = (jnp.bfloat16, jnp.float32)


def suits(*arrays: Array) -> bool:
    """Whether the kernel takes numbers of these kinds."""
    return any(all(x.dtype == dtype for x in arrays) for dtype in DTYPES)


def sums_by_group(
    x: Float[Array, "M D"],
    y: Float[Array, "M F"],
    sizes: Int[Array, G],
    interpret: bool = False,
) -> Float[Array, "G D F"]:
    """x^T y of the rows of each group, which stand one group after the other.

    Args:
      x: rows.
      y: rows.
      sizes: of groups; rows beyond their sum are in none.
      interpret: compute what the kernel says, on any device and slowly, for tests.
    """
    flops = 2 * math.prod(x.shape) * y.shape[1]
    (found,) = opaque(functools.partial(_sums, interpret), (sizes,), (x, y), (flops, 2 * flops, 0))
    return found


def _sums(interpret: bool, sizes: Array, x: Array, y: Array) -> tuple[Array]:
    from jax.experimental.pallas.ops.tpu.megablox.gmm import tgmm

    missing = -x.shape[0] % ROWS
    x, y = (jnp.pad(rows, ((0, missing), (0, 0))) for rows in (x, y))
    tiles = ROWS, _tile(x.shape[1]), _tile(y.shape[1])
    return (tgmm(x.T, y, sizes, x.dtype, tiles, interpret=interpret),)


def _tile(size: int) -> int:
    return min(-(-size // ROWS) * ROWS, COLUMNS)
