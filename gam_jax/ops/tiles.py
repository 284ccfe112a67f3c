"""Queries and keys cut into blocks: which see which, and in what order they are computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from gam_jax.ops.pages import PagedKeys
from sharding import products

BLOCK = 512
"""Tokens in a block of queries, and of keys."""

HIDDEN = -1e30
"""The score of a key that a query does not see."""

EMPTY = -1e29
"""The maximum, and log-sum, over no key: above HIDDEN, so that exp(HIDDEN - EMPTY) is 0."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a query makes of a key.

    Attributes:
      scale: scores are q . k * scale.
      causal: a query sees keys up to its own place.
      window: and only that many last ones, its own among them; 0 for all.
      soft_cap: scores become cap * tanh(score / cap) (Gemma 2, arXiv 2408.00118); 0 for none.
      block: tokens in a block.
      fixed: whether that stays where a machine has a better one of its own.
      at_once: the most scores that are computed at once, over rows and heads in a block of queries
        and keys, but at least those of one group of heads; 0 for all.
    """

    scale: float
    causal: bool = True
    window: int = 0
    soft_cap: float = 0.0
    block: int = BLOCK
    fixed: bool = False
    at_once: int = 0

    def in_blocks(self, size: int) -> Rule:
        """With blocks of so many tokens, whatever the machine; 0 for those that it has."""
        return dataclasses.replace(self, block=size, fixed=True) if size else self


class Place(NamedTuple):
    """Where a block of queries begins.

    Attributes:
      row: the first of the rows that take their turn.
      group: the first of their groups of heads.
      block: the number of the block.
    """

    row: Any
    group: Any
    block: Any


@dataclasses.dataclass(frozen=True)
class Tiles:
    """T queries and S keys cut into blocks; the last of queries may be filled up.

    Attributes:
      rule: see `Rule`.
      tokens: T.
      keys: S.
      batch: B, G and R.
      paged: keys in a block, where they lie in pages.
    """

    rule: Rule
    tokens: int
    keys: int
    batch: tuple[int, int, int]
    paged: int = 0

    @classmethod
    def of(cls, rule: Rule, q: Array, k: Array | PagedKeys) -> Tiles:
        """Those of queries [B, G, R, T, K] and keys [B, G, S, K]."""
        rows, groups, heads, tokens, _ = q.shape
        paged = k.columns if isinstance(k, PagedKeys) else 0
        return cls(rule, tokens, k.shape[2], (rows, groups, heads), paged)

    @property
    def together(self) -> tuple[int, int]:
        """Rows, and groups of heads of a row, that are computed at once: whole rows if one is few.

        Pages are read for all rows, and one block is not worth a loop.
        """
        rows, groups, heads = self.batch
        most = self.rule.at_once // (heads * self.rows * self.columns)
        few = most >= rows * groups or self.row_blocks * self.column_blocks == 1
        if not self.rule.at_once or self.paged or few:
            return rows, groups
        if most >= groups:
            return _divisor(rows, most // groups), groups
        return 1, _divisor(groups, most)

    @property
    def rows(self) -> int:
        """Queries in a block."""
        return min(self.rule.block, self.tokens)

    @property
    def columns(self) -> int:
        """Keys in a block."""
        return self.paged or min(self.rule.block, self.keys)

    @property
    def row_blocks(self) -> int:
        """Blocks of queries."""
        return -(-self.tokens // self.rows)

    @property
    def column_blocks(self) -> int:
        """Blocks of keys."""
        return -(-self.keys // self.columns)

    @property
    def counted(self) -> int:
        """Blocks of keys for a block of queries, as `product_flops` counts: masked pairs too.

        With a window that is what queries see that begin with a block of keys, as in training.
        """
        if not (self.rule.window and self.rule.causal):
            return self.column_blocks
        before = -(-(self.rule.window - 1) // self.columns)
        return min(self.column_blocks, before + -(-self.rows // self.columns))

    def seen(self, at: Place, offset: Any, first: Any) -> tuple[Any, Any] | None:
        """The blocks of keys lo <= j < hi that some query of a block, in any row, may see.

        None for the only block, unless documents could lie elsewhere: it costs less than asking.
        """
        if self.column_blocks == 1 and jnp.ndim(first) < 2:
            return None
        offset = self._own(at, offset)
        begin = offset + at.block * self.rows
        lo, hi = self._firsts(at, first), self.keys
        lo = jnp.min(lo, axis=1) if jnp.ndim(lo) == 2 else lo
        if self.rule.window:
            lo = jnp.maximum(lo, begin - self.rule.window + 1)
        if self.rule.causal:
            hi = jnp.minimum(hi, offset + jnp.minimum((at.block + 1) * self.rows, self.tokens))
        lo, hi = jnp.min(lo), jnp.max(hi)
        lo = jnp.clip(lo // self.columns, 0, self.column_blocks)
        return lo, jnp.clip(-(-hi // self.columns), lo, self.column_blocks)

    def visible(self, at: Place, j: Any, offset: Any, first: Any) -> Array:
        """Which queries of a block see which keys of block j: bool [rows, columns].

        [B, 1, 1, rows, columns] where rows differ in `offset` or `first`.
        """
        offset, first = (_of_rows(x) for x in (self._own(at, offset), self._firsts(at, first)))
        place = offset + at.block * self.rows + jnp.arange(self.rows)[:, None]
        begin = j * self.columns
        key = jnp.minimum(begin, self.keys - self.columns) + jnp.arange(self.columns)[None]
        see = key >= jnp.maximum(first, begin)
        if self.rule.causal:
            see &= key <= place
        if self.rule.window:
            see &= key > place - self.rule.window
        return see

    def _own(self, at: Place, x: Any) -> Any:
        """A number of all rows as it is; of one for each, [B, ...], those that have their turn."""
        rows, _ = self.together
        if jnp.ndim(x) == 0 or rows == self.batch[0]:
            return x
        return lax.dynamic_slice_in_dim(x, at.row, rows, axis=0)

    def _firsts(self, at: Place, first: Any) -> Any:
        """`first` of a block: [B, rows] where queries differ, else as it is."""
        first = self._own(at, first)
        if jnp.ndim(first) < 2:
            return first
        missing = self.row_blocks * self.rows - self.tokens
        first = jnp.pad(first, ((0, 0), (0, missing)), mode="edge")
        return lax.dynamic_slice_in_dim(first, at.block * self.rows, self.rows, axis=1)

    def scores(self, q: Array, k: Array, see: Array) -> tuple[Array, Array]:
        """Float32 scores [B, G, R, rows, columns], hidden ones HIDDEN, and d score / d (q . k)."""
        raw = rows_by_columns(q, k) * self.rule.scale
        slope: Array = jnp.float32(self.rule.scale)
        if self.rule.soft_cap:
            bent = jnp.tanh(raw / self.rule.soft_cap)
            raw, slope = self.rule.soft_cap * bent, slope * (1 - bent * bent)
        return jnp.where(see, raw, HIDDEN), slope

    def by_rows(self, x: Array) -> Array:
        """[B, G, R, T, ...] as the blocks of each turn, [turns n, b, g, R, rows, ...]."""
        missing = self.row_blocks * self.rows - self.tokens
        x = jnp.pad(x, [(0, missing if dim == 3 else 0) for dim in range(x.ndim)])
        rows, groups = self.together
        x = x.reshape(-1, rows, x.shape[1] // groups, groups, *x.shape[2:])
        x = x.reshape(*x.shape[:5], self.row_blocks, self.rows, *x.shape[6:])
        x = jnp.moveaxis(x, (2, 5), (1, 2))
        return x.reshape(-1, *x.shape[3:])

    def joined(self, x: Array) -> Array:
        """The inverse of `by_rows`."""
        rows, groups, _ = self.batch
        x = x.reshape(rows // x.shape[1], groups // x.shape[2], self.row_blocks, *x.shape[1:])
        x = jnp.moveaxis(x, (1, 2), (2, 5))
        x = x.reshape(rows, groups, x.shape[4], -1, *x.shape[7:])
        return x[:, :, :, : self.tokens]

    def each_row(self, body: Callable[..., Any], state: Any, *arrays: Array) -> tuple[Any, Any]:
        """Runs `body(state, place, *blocks)` for each block of queries, in order.

        `blocks` are those of each of `arrays` there. Returns the last state, and what `body` gave
        for each block, stacked.
        """
        blocks = [self.by_rows(x) for x in arrays]
        count = blocks[0].shape[0]
        if count == 1:
            state, y = body(state, Place(0, 0, 0), *(x[0] for x in blocks))
            return state, jax.tree.map(lambda x: x[None], y)
        return lax.scan(
            lambda state, xs: body(state, self._place(xs[0]), *xs[1:]),
            state,
            (jnp.arange(count), *blocks),
        )

    def _place(self, number: Array) -> Place:
        rows, groups = self.together
        turn, block = number // self.row_blocks, number % self.row_blocks
        turns = self.batch[1] // groups
        return Place(turn // turns * rows, turn % turns * groups, block)

    def each_column(
        self, ends: tuple[Any, Any] | None, body: Callable[..., Any], state: Any
    ) -> Any:
        """Runs `state = body(j, state)` for the blocks j of keys that `seen` gives."""
        with products.turns(1 if ends is None else self.counted):
            return body(0, state) if ends is None else lax.fori_loop(*ends, body, state)

    def column(self, x: Array | PagedKeys, at: Place, j: Any) -> Array:
        """Block j of [B, G, S, ...] as [b, g, columns, ...].

        Where the last block is not full, it begins sooner, so that nothing is filled up: a cache is
        read where it lies. `visible` hides what belongs to the block before.
        """
        if isinstance(x, PagedKeys):
            return x.block(j)
        start = at.row, at.group, j * self.columns, 0
        return lax.dynamic_slice(x, start, (*self.together, self.columns, x.shape[3]))

    def add(self, total: Array, part: Array, at: Place, j: Any) -> Array:
        """`total` [B, G, K, S] with [b, g, K, columns] added where block j is."""
        start = at.row, at.group, 0, j * self.columns
        part += lax.dynamic_slice(total, start, part.shape)
        return lax.dynamic_update_slice(total, part, start)


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most that, and at least 1."""
    return max(n for n in range(1, max(most, 1) + 1) if number % n == 0)


def _of_rows(x: Array) -> Array:
    """A number for all rows as it is, or one for each row or query, [B(, rows)], beside scores."""
    if jnp.ndim(x) == 2:
        return x[:, None, None, :, None]
    return x if jnp.ndim(x) == 0 else x[:, None, None, None, None]


def rows_by_columns(q: Array, k: Array) -> Array:
    """[B, G, R, rows, K] by [B, G, columns, K]: one product a group of heads, float32."""
    flat = q.reshape(*q.shape[:2], -1, q.shape[-1])
    y = jnp.einsum("bgqk,bgsk->bgqs", flat, k, preferred_element_type=jnp.float32)
    return y.reshape(*q.shape[:4], -1)


def weights_by_columns(p: Array, v: Array) -> Array:
    """[B, G, R, rows, columns] by [B, G, columns, V], float32."""
    flat = p.reshape(*p.shape[:2], -1, p.shape[-1]).astype(v.dtype)
    y = jnp.einsum("bgqs,bgsv->bgqv", flat, v, preferred_element_type=jnp.float32)
    return y.reshape(*p.shape[:4], -1)


def channels_first(x: Array) -> Array:
    """[B, G, R, rows, K] as [B, G, K, R rows]."""
    return jnp.swapaxes(x.reshape(*x.shape[:2], -1, x.shape[-1]), 2, 3)


def weights_by_rows(q: Array, p: Array) -> Array:
    """[B, G, K, R rows] by [B, G, R, rows, columns], summed over rows: [B, G, K, columns].

    Channels are first on both sides: a processor multiplies faster by what it need not turn.
    """
    flat = p.reshape(*p.shape[:2], -1, p.shape[-1]).astype(q.dtype)
    return jnp.einsum("bgkq,bgqs->bgks", q, flat, preferred_element_type=jnp.float32)
