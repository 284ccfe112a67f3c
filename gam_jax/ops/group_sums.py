"""Sums by group of the products of rows, as a Pallas kernel for TPUs.

Rows go by in tiles, a tile once for each group that has rows in it, as in MegaBlocks (arXiv
2211.15841) and in JAX's own kernels, whose last sum is lost under some uses of `jax.vmap`
(docs/speed.md).
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
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
    """x^T y of the rows of each group, which stand one group after the other; summed in float32.

    Args:
      x: rows.
      y: rows.
      sizes: of groups; rows beyond their sum are in none.
      interpret: compute what the kernel says, on any device and slowly, for tests.
    """
    flops = 2 * math.prod(x.shape) * y.shape[1]
    sums = functools.partial(_sums, interpret)
    (found,) = opaque(sums, (sizes,), (x, y), (flops, 2 * flops, 0))
    return found


class Visits(NamedTuple):
    """Tiles of rows, each once for each group that has rows in it, in the order of the groups.

    A group without rows has a visit of none. There are as many visits as there can be; those that
    are too many are the last group's, of no rows.

    Attributes:
      group: [V].
      tile: [V].
      begin: [V], the first row.
      end: [V], the row after the last.
    """

    group: Array
    tile: Array
    begin: Array
    end: Array


def visits_of(sizes: Int[Array, G], tiles: int) -> Visits:
    """The visits to so many tiles."""
    ends = jnp.cumsum(sizes)
    starts = ends - sizes
    first = jnp.minimum(starts // ROWS, tiles - 1)
    count = jnp.maximum(-(-ends // ROWS) - first, 1)
    after = jnp.cumsum(count)
    visit = jnp.arange(tiles + sizes.shape[0], dtype=jnp.int32)
    group = jnp.sum(after <= visit[:, None], axis=1, dtype=jnp.int32)
    group = jnp.minimum(group, sizes.shape[0] - 1)
    tile = first[group] + visit - (after - count)[group]
    begin = jnp.maximum(starts[group], tile * ROWS)
    end = jnp.minimum(ends[group], (tile + 1) * ROWS)
    return Visits(group, jnp.clip(tile, 0, tiles - 1), begin, end)


def _sums(interpret: bool, sizes: Array, x: Array, y: Array) -> tuple[Array]:
    from jax.experimental.pallas import tpu as pltpu  # slow to import, and seldom used

    missing = -x.shape[0] % ROWS
    x, y = (jnp.pad(rows, ((0, missing), (0, 0))) for rows in (x, y))
    visits = visits_of(sizes, x.shape[0] // ROWS)
    count, (wide, high) = visits.group.shape[0], (_tile(a.shape[1]) for a in (x, y))

    def kernel(group: Any, tile: Any, begin: Any, end: Any, *refs: Any) -> None:
        x, y, total, held = refs
        visit = pl.program_id(2)
        own = group[visit]

        @pl.when((visit == 0) | (group[jnp.maximum(visit - 1, 0)] != own))
        def _() -> None:
            held[...] = jnp.zeros_like(held)

        @pl.when(begin[visit] < end[visit])
        def _() -> None:
            place = tile[visit] * ROWS + lax.broadcasted_iota(jnp.int32, (ROWS, 1), 0)
            there = (place >= begin[visit]) & (place < end[visit])
            left, right = (jnp.where(there, a[...], jnp.zeros((), a.dtype)) for a in (x, y))
            held[...] += lax.dot_general(
                left, right, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
            )

        @pl.when((visit == count - 1) | (group[jnp.minimum(visit + 1, count - 1)] != own))
        def _() -> None:
            total[...] = held[...].astype(total.dtype)

    result = jax.ShapeDtypeStruct((sizes.shape[0], x.shape[1], y.shape[1]), x.dtype)
    read = x.size * pl.cdiv(y.shape[1], high) + y.size * pl.cdiv(x.shape[1], wide)
    found = pl.pallas_call(
        kernel,
        out_shape=result,
        cost_estimate=pl.CostEstimate(
            flops=2 * x.size * y.shape[1],
            bytes_accessed=(read + result.size) * x.dtype.itemsize,
            transcendentals=0,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4,
            grid=(pl.cdiv(x.shape[1], wide), pl.cdiv(y.shape[1], high), count),
            in_specs=[
                pl.BlockSpec((ROWS, wide), lambda i, j, v, group, tile, *_: (tile[v], i)),
                pl.BlockSpec((ROWS, high), lambda i, j, v, group, tile, *_: (tile[v], j)),
            ],
            out_specs=pl.BlockSpec((None, wide, high), lambda i, j, v, group, *_: (group[v], i, j)),
            scratch_shapes=[pltpu.VMEM((wide, high), jnp.float32)],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
    )(*visits, x, y)
    return (found,)


def _tile(size: int) -> int:
    return min(-(-size // ROWS) * ROWS, COLUMNS)
