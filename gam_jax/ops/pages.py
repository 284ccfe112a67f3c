"""Growing caches of many rows in pages of one pool: a row holds the pages that it has filled.

Source: PagedAttention (arXiv 2309.06180), section 4.1. A row's tokens lie in its pages in order,
and its table says which pages these are, so that no row keeps room for tokens it has not got.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from sharding import collectives
from sharding.errors import UserError

COLUMNS, ON_CPU = 128, 64
"""Tokens that attention reads at once, where pages are smaller; and on processors."""
NEAR = 2**18
"""Bytes of keys that a processor reads at once: with as many of values they stay in its cache."""


def columns_of(page: int, pages: int, backend: str | None) -> int:
    """Tokens of a row that attention reads at once: whole pages.

    Args:
      page: tokens of a page.
      pages: the most of a row.
      backend: "cpu", "gpu" or "tpu"; None for JAX's default.
    """
    columns = ON_CPU if (backend or jax.default_backend()) == "cpu" else COLUMNS
    return min(max(1, columns // page), pages) * page


@flax.struct.dataclass
class Pages:
    """A growing cache as a layer's carry holds it where rows are served.

    Attributes:
      pool: the cache's shape with pages in the place of rows, and a page's tokens in the place of
        all: [pages, G, page, K] for a cache [B, G, S, K].
      table: int32 [B, N], the pages of each row in order. Page 0 is nobody's: it stands where a
        row has none, and what is written beyond a row's pages lands there.
    """

    pool: Array
    table: Int[Array, "B N"]

    def write(self, new: Array, places: Int[Array, B], axis: int) -> Pages:
        """With `new` in each row from that row's own place on, written in place where that may be.

        Args:
          new: [B, ..., T, ...], as a cache has it; taken to the dtype of the pool.
          places: of the first new token in each row.
          axis: that of tokens.
        """
        size, tokens = self.pool.shape[axis], new.shape[axis]
        at = places[:, None] + jnp.arange(tokens)
        page = jnp.take_along_axis(self.table, at // size, axis=1, mode="fill", fill_value=0)
        index: list[Any] = [slice(None)] * self.pool.ndim
        index[0], index[axis] = page, at % size
        # Indices that a slice parts come first in the result, the slices after them.
        new = jnp.moveaxis(new, axis, 1).astype(self.pool.dtype)
        return dataclasses.replace(self, pool=self.pool.at[tuple(index)].set(new))

    def join_streams(self, axis: int) -> Pages:
        """[..., P, pages, ...] and tables [..., P, B, N] as those of P B rows."""
        shape, parts = self.pool.shape, self.pool.shape[axis]
        pool = self.pool.reshape(*shape[:axis], parts * shape[axis + 1], *shape[axis + 2 :])
        first = jnp.arange(parts, dtype=jnp.int32)[:, None, None] * shape[axis + 1]
        table = self.table + first
        return Pages(pool, table.reshape(*table.shape[:axis], -1, table.shape[-1]))

    def split_streams(self, axis: int, parts: int) -> Pages:
        """The inverse."""
        shape, pages = self.pool.shape, self.pool.shape[axis] // parts
        pool = self.pool.reshape(*shape[:axis], parts, pages, *shape[axis + 1 :])
        table = self.table.reshape(*self.table.shape[:axis], parts, -1, self.table.shape[-1])
        first = jnp.arange(parts, dtype=jnp.int32)[:, None, None] * pages
        return Pages(pool, table - first)


@flax.struct.dataclass
class PagedKeys:
    """Keys, or values, as `ops.attention.attend_cache` reads them out of pages.

    Attributes:
      parts: pages [pages, G, page, K], or [pages, page, K] for one head; several are joined along
        channels.
      count: int32 [B], tokens that each row has. What lies behind them reads as 0, so that nothing
        of another text, not even a NaN, gets into a sum.
      dtype: of what is read.
      backend: where it will run, as "cpu"; None for JAX's default.
    """

    parts: tuple[Pages, ...]
    count: Int[Array, B]
    dtype: Any = flax.struct.field(pytree_node=False)
    backend: str | None = flax.struct.field(pytree_node=False, default=None)

    @classmethod
    def of(
        cls, parts: Sequence[Pages], count: Int[Array, B], dtype: Any, backend: str | None = None
    ) -> PagedKeys:
        """The parts, alike on the mesh."""
        leaves, tree = jax.tree.flatten((tuple(parts), count))
        parts, count = jax.tree.unflatten(tree, collectives.vary_alike(*leaves))
        return cls(parts, count, dtype, backend)  # type: ignore[call-arg]

    @property
    def page(self) -> int:
        """Tokens of a page."""
        return self.parts[0].pool.shape[-2]

    @property
    def columns(self) -> int:
        """Tokens of a block: whole pages."""
        return columns_of(self.page, self.parts[0].table.shape[1], self.backend)

    @property
    def rows(self) -> int:
        """Rows that are read at once: all, but for processors whose cache has no room for so many.

        A divisor of B, and one of at least half as many rows as there is room for; else all.
        """
        rows, heads, _, channels = self.shape
        row = heads * self.columns * channels * jnp.dtype(self.dtype).itemsize
        most = max(1, NEAR // row)
        if (self.backend or jax.default_backend()) != "cpu" or rows <= most:
            return rows
        return next((n for n in range(most, most // 2, -1) if rows % n == 0), rows)

    @property
    def of_rows(self) -> tuple[Array, ...]:
        """What it has for each row, [B, ...]: tables and counts."""
        return (*(part.table for part in self.parts), self.count)

    def with_rows(self, of_rows: Sequence[Array]) -> PagedKeys:
        """With other rows, of the same pools."""
        *tables, count = of_rows
        pairs = zip(self.parts, tables, strict=True)
        parts = tuple(dataclasses.replace(part, table=table) for part, table in pairs)
        return dataclasses.replace(self, parts=parts, count=count)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, G, N page, K], as if they were one array."""
        rows, pages = self.parts[0].table.shape
        channels = sum(part.pool.shape[-1] for part in self.parts)
        pool = self.parts[0].pool
        return rows, pool.shape[1] if pool.ndim == 4 else 1, pages * self.page, channels

    def block(self, j: Any) -> Array:
        """Block j, [B, G, columns, K]; one that would reach beyond the pages begins sooner."""
        count = self.columns // self.page
        start = jnp.minimum(j * count, self.parts[0].table.shape[1] - count)
        found = jnp.concatenate([_read(part, start, count) for part in self.parts], axis=-1)
        there = start * self.page + jnp.arange(self.columns) < self.count[:, None]
        return jnp.where(there[:, None, :, None], found, 0).astype(self.dtype)


def _read(part: Pages, start: Any, count: int) -> Array:
    """Pages start, start + 1, ... of each row, [B, G, count page, K]."""
    pool = part.pool if part.pool.ndim == 4 else part.pool[:, None]
    table = lax.dynamic_slice_in_dim(part.table, start, count, axis=1)
    found = jnp.take(pool, table, axis=0, mode="clip")  # [B, count, G, page, K]
    return jnp.moveaxis(found, 1, 2).reshape(len(table), pool.shape[1], -1, pool.shape[-1])


def check_one_document(spans: Any) -> None:
    """Raises a UserError where documents begin inside rows whose caches lie in pages."""
    if spans is not None:
        raise UserError("rows in pages hold one document each: leave out starts")
