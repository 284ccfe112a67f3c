"""Softmax attention in blocks: memory grows with the tokens, not with their square.

Source: FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2: an online softmax over blocks of
keys, and a backward pass that makes each block of weights again from the logarithm of its sum.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from gam_jax.ops.pages import PagedKeys
from sharding import collectives, products

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
    """

    scale: float
    causal: bool = True
    window: int = 0
    soft_cap: float = 0.0
    block: int = BLOCK
    fixed: bool = False

    def in_blocks(self, size: int) -> Rule:
        """With blocks of so many tokens, whatever the machine; 0 for those that it has."""
        return dataclasses.replace(self, block=size, fixed=True) if size else self


def attend_tokens(
    rule: Rule,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S G K"],
    v: Float[Array, "B S G V"],
    offset: Array | int = 0,
    first: Array | int = 0,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """softmax(scores) v over the keys that a query sees.

    As `attend_cache`, of keys and values that have tokens before heads.
    """
    return attend_cache(rule, q, jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2), offset, first)


def attend_cache(
    rule: Rule,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B G S K"] | PagedKeys,
    v: Float[Array, "B G S V"] | PagedKeys,
    offset: Array | int = 0,
    first: Array | int = 0,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """softmax(scores) v over the keys that a query sees, read as a cache keeps them.

    Query head h reads key head h // (H / G) (grouped queries, arXiv 2305.13245).

    Args:
      rule: see `Rule`.
      q: queries.
      k: keys, S of them, in G groups of heads; heads before tokens, so that a block of one head's
        keys lies in one piece. Those in pages are read a block at a time; they have no derivative.
      v: values, likewise.
      offset: place of the first query, the first key standing at 0: of all rows, or of each row,
        [B]. It may be traced.
      first: keys before this one are not there; of all rows or of each, likewise, or of each
        query, [B, T]: where its document begins, if rows hold several (rows in pages do not).

    Returns:
      The mixture and the logarithm of the sum of exp(scores), both float32. A query that sees no
      key has the mixture 0 and the logarithm EMPTY. Blocks that no query sees are not computed.
    """
    batch, tokens, heads, size = q.shape
    groups = k.shape[1]
    grouped = q.reshape(batch, tokens, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    ends = (jnp.asarray(x, jnp.int32) for x in (offset, first))
    if isinstance(k, PagedKeys) and isinstance(v, PagedKeys):
        out, lse = _in_pages(rule, grouped, k, v, *ends)
    else:
        assert not isinstance(k, PagedKeys)
        assert not isinstance(v, PagedKeys)
        pair: tuple[Array, Array] = _attend(rule, *collectives.vary_alike(grouped, k, v, *ends))
        out, lse = pair
    out = out.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, heads, -1)
    return out, lse.transpose(0, 3, 1, 2).reshape(batch, tokens, heads)


def _in_pages(
    rule: Rule, q: Array, k: PagedKeys, v: PagedKeys, offset: Array, first: Array
) -> tuple[Array, Array]:
    """`forward`, of as many rows at once as there is room near the processor.

    Rows of about as many tokens are read together, so that none waits for a far longer one. What a
    row gets does not depend on which others these are.
    """
    size, count = k.rows, len(q)
    if size == count:
        return forward(rule, q, k, v, offset, first)
    order = jnp.argsort(k.count)

    def parted(x: Array) -> Array:
        return x[order].reshape(-1, size, *x.shape[1:])

    def part(rows: Any) -> tuple[Array, Array]:
        q, keys, values, ends = rows
        return forward(rule, q, k.with_rows(keys), v.with_rows(values), *ends)

    ends = tuple(jnp.broadcast_to(x, count) for x in (offset, first))
    found = lax.map(part, jax.tree.map(parted, (q, k.of_rows, v.of_rows, ends)))
    back = jnp.argsort(order)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:])[back], found)


def merge(
    one: tuple[Array, Array], other: tuple[Array, Array]
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """The result of `attend_tokens` over two sets of keys, from its results over each."""
    (out, lse), (more, more_lse) = one, other
    share = jax.nn.sigmoid(more_lse - lse)[..., None]
    return out + share * (more - out), jnp.logaddexp(lse, more_lse)


def with_shared(
    found: tuple[Array, Array],
    rule: Rule,
    q: Float[Array, "B T H K"],
    keys: Float[Array, "B G S K"],
    values: Float[Array, "B G S V"],
) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
    """What `attend_tokens` found, with keys and values that every query sees, where it be."""
    plain = dataclasses.replace(rule, causal=False, window=0)
    return merge(found, attend_cache(plain, q, keys.astype(q.dtype), values.astype(q.dtype)))


def with_sinks(
    out: Float[Array, "B T H V"], lse: Float[Array, "B T H"], sinks: Float[Array, H]
) -> Float[Array, "B T H V"]:
    """The mixture `out` where each head has one more key, of score `sinks[h]` and value 0.

    A head that finds nothing can leave its weight there (arXiv 2309.17453, section 3.2, with a
    learned score in the place of SoftMax1's 0).
    """
    return out * jax.nn.sigmoid(lse - sinks.astype(jnp.float32))[..., None]


@dataclasses.dataclass(frozen=True)
class Tiles:
    """T queries and S keys cut into blocks; the last of queries may be filled up.

    Attributes:
      rule: see `Rule`.
      tokens: T.
      keys: S.
      paged: keys in a block, where they lie in pages.
    """

    rule: Rule
    tokens: int
    keys: int
    paged: int = 0

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

    def seen(self, i: Any, offset: Any, first: Any) -> tuple[Any, Any] | None:
        """The blocks of keys lo <= j < hi that some query of block i, in any row, may see.

        None for the only block, unless documents could lie elsewhere: it costs less than asking.
        """
        if self.column_blocks == 1 and jnp.ndim(first) < 2:
            return None
        begin = offset + i * self.rows
        lo, hi = self._firsts(i, first), self.keys
        lo = jnp.min(lo, axis=1) if jnp.ndim(lo) == 2 else lo
        if self.rule.window:
            lo = jnp.maximum(lo, begin - self.rule.window + 1)
        if self.rule.causal:
            hi = jnp.minimum(hi, offset + jnp.minimum((i + 1) * self.rows, self.tokens))
        lo, hi = jnp.min(lo), jnp.max(hi)
        lo = jnp.clip(lo // self.columns, 0, self.column_blocks)
        return lo, jnp.clip(-(-hi // self.columns), lo, self.column_blocks)

    def visible(self, i: Any, j: Any, offset: Any, first: Any) -> Array:
        """Which queries of block i see which keys of block j: bool [rows, columns].

        [B, 1, 1, rows, columns] where rows differ in `offset` or `first`.
        """
        offset, first = (_of_rows(x) for x in (offset, self._firsts(i, first)))
        place = offset + i * self.rows + jnp.arange(self.rows)[:, None]
        begin = j * self.columns
        key = jnp.minimum(begin, self.keys - self.columns) + jnp.arange(self.columns)[None]
        see = key >= jnp.maximum(first, begin)
        if self.rule.causal:
            see &= key <= place
        if self.rule.window:
            see &= key > place - self.rule.window
        return see

    def _firsts(self, i: Any, first: Any) -> Any:
        """`first` of block i: [B, rows] where queries differ, else as it is."""
        if jnp.ndim(first) < 2:
            return first
        missing = self.row_blocks * self.rows - self.tokens
        first = jnp.pad(first, ((0, 0), (0, missing)), mode="edge")
        return lax.dynamic_slice_in_dim(first, i * self.rows, self.rows, axis=1)

    def scores(self, q: Array, k: Array, see: Array) -> tuple[Array, Array]:
        """Float32 scores [B, G, R, rows, columns], hidden ones HIDDEN, and d score / d (q . k)."""
        raw = _rows_by_columns(q, k) * self.rule.scale
        slope: Array = jnp.float32(self.rule.scale)
        if self.rule.soft_cap:
            bent = jnp.tanh(raw / self.rule.soft_cap)
            raw, slope = self.rule.soft_cap * bent, slope * (1 - bent * bent)
        return jnp.where(see, raw, HIDDEN), slope

    def by_rows(self, x: Array) -> Array:
        """[B, G, R, T, ...] as blocks [n, B, G, R, rows, ...]."""
        missing = self.row_blocks * self.rows - self.tokens
        x = jnp.pad(x, [(0, missing if dim == 3 else 0) for dim in range(x.ndim)])
        x = x.reshape(*x.shape[:3], self.row_blocks, self.rows, *x.shape[4:])
        return jnp.moveaxis(x, 3, 0)

    def joined(self, x: Array) -> Array:
        """The inverse of `by_rows`."""
        x = jnp.moveaxis(x, 0, 3)
        return x.reshape(*x.shape[:3], -1, *x.shape[5:])[:, :, :, : self.tokens]

    def each_row(self, body: Callable[..., Any], state: Any, *arrays: Array) -> tuple[Any, Any]:
        """Runs `body(state, i, *blocks)` for each block i of queries, in order.

        `blocks` are block i of each of `arrays`. Returns the last state, and what `body` gave for
        each block, stacked.
        """
        blocks = [self.by_rows(x) for x in arrays]
        if self.row_blocks == 1:
            state, y = body(state, 0, *(x[0] for x in blocks))
            return state, jax.tree.map(lambda x: x[None], y)
        return lax.scan(
            lambda state, xs: body(state, *xs), state, (jnp.arange(self.row_blocks), *blocks)
        )

    def each_column(
        self, ends: tuple[Any, Any] | None, body: Callable[..., Any], state: Any
    ) -> Any:
        """Runs `state = body(j, state)` for the blocks j of keys that `seen` gives."""
        with products.turns(1 if ends is None else self.counted):
            return body(0, state) if ends is None else lax.fori_loop(*ends, body, state)

    def column(self, x: Array | PagedKeys, j: Any) -> Array:
        """Block j of [B, G, S, ...] as [B, G, columns, ...].

        Where the last block is not full, it begins sooner, so that nothing is filled up: a cache is
        read where it lies. `visible` hides what belongs to the block before.
        """
        if isinstance(x, PagedKeys):
            return x.block(j)
        return lax.dynamic_slice_in_dim(x, j * self.columns, self.columns, axis=2)


def _of_rows(x: Array) -> Array:
    """A number for all rows as it is, or one for each row or query, [B(, rows)], beside scores."""
    if jnp.ndim(x) == 2:
        return x[:, None, None, :, None]
    return x if jnp.ndim(x) == 0 else x[:, None, None, None, None]


def _rows_by_columns(q: Array, k: Array) -> Array:
    """[B, G, R, rows, K] by [B, G, columns, K]: one product a group of heads, float32."""
    flat = q.reshape(*q.shape[:2], -1, q.shape[-1])
    y = jnp.einsum("bgqk,bgsk->bgqs", flat, k, preferred_element_type=jnp.float32)
    return y.reshape(*q.shape[:4], -1)


def _weights_by_columns(p: Array, v: Array) -> Array:
    """[B, G, R, rows, columns] by [B, G, columns, V], float32."""
    flat = p.reshape(*p.shape[:2], -1, p.shape[-1]).astype(v.dtype)
    y = jnp.einsum("bgqs,bgsv->bgqv", flat, v, preferred_element_type=jnp.float32)
    return y.reshape(*p.shape[:4], -1)


def _weights_by_rows(p: Array, q: Array) -> Array:
    """[B, G, R, rows, columns] by [B, G, R, rows, K], summed over rows: [B, columns, G, K].

    With tokens before heads: XLA on CPU takes two thirds of the time for it.
    """
    p, q = (x.reshape(*x.shape[:2], -1, x.shape[-1]) for x in (p, q))
    p = p.astype(q.dtype)
    return jnp.einsum("bgqs,bgqk->bsgk", p, q, preferred_element_type=jnp.float32)


def _full(shape: tuple[int, ...], value: float, like: Array) -> Array:
    return collectives.as_varying(
        jnp.full(shape, value, jnp.float32), sorted(collectives.varying(like))
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    rule: Rule, q: Array, k: Array, v: Array, offset: Array, first: Array
) -> tuple[Array, Array]:
    return forward(rule, q, k, v, offset, first)


def forward(
    rule: Rule,
    q: Array,
    k: Array | PagedKeys,
    v: Array | PagedKeys,
    offset: Array,
    first: Array,
) -> tuple[Float[Array, "B G R T V"], Float[Array, "B G R T"]]:
    """`attend_cache` of [B, G, R, T, K], [B, G, S, K] and [B, G, S, V], without a derivative."""
    tiles = Tiles(rule, q.shape[3], k.shape[2], k.columns if isinstance(k, PagedKeys) else 0)

    def row(state: None, i: Any, q: Array) -> tuple[None, tuple[Array, Array]]:
        def column(j: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            top, total, out = state
            see = tiles.visible(i, j, offset, first)
            scores, _ = tiles.scores(q, tiles.column(k, j), see)
            higher = jnp.maximum(top, jnp.max(scores, axis=-1))
            weights, kept = jnp.exp(scores - higher[..., None]), jnp.exp(top - higher)
            total = total * kept + jnp.sum(weights, axis=-1)
            out = out * kept[..., None] + _weights_by_columns(weights, tiles.column(v, j))
            return higher, total, out

        shape = q.shape[:4]
        start = _full(shape, EMPTY, q), _full(shape, 0, q), _full((*shape, v.shape[-1]), 0, q)
        ends = tiles.seen(i, offset, first)
        top, total, out = tiles.each_column(ends, column, start)
        some = jnp.where(total == 0, 1, total)
        return None, (out / some[..., None], top + jnp.log(some))

    _, (out, lse) = tiles.each_row(row, None, q)
    return tiles.joined(out), tiles.joined(lse)


def backward(
    rule: Rule,
    inputs: tuple[Array, Array, Array, Array, Array],
    lse: Float[Array, "B G R T"],
    d_out: Float[Array, "B G R T V"],
    shift: Float[Array, "B G R T"],
) -> tuple[Array, Array, Array]:
    """Float32 gradients by q, k and v.

    Args:
      rule: see `Rule`.
      inputs: those of `forward`: q, k, v, offset and first.
      lse: over all keys that the queries have seen, here or elsewhere.
      d_out: gradient of the mixture.
      shift: sum(d_out * out) over channels, less the gradient of `lse`.
    """
    q, k, v, offset, first = inputs
    tiles = Tiles(rule, q.shape[3], k.shape[2])

    def add(total: Array, part: Array, j: Any) -> Array:
        start = j * tiles.columns
        part += lax.dynamic_slice_in_dim(total, start, tiles.columns, axis=1)
        return lax.dynamic_update_slice_in_dim(total, part, start, axis=1)

    def row(state: tuple[Array, Array], i: Any, *blocks: Array) -> tuple[Any, Array]:
        q, lse, d_out, shift = blocks

        def column(j: Any, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_q, d_k, d_v = state
            key, value = tiles.column(k, j), tiles.column(v, j)
            with products.recomputed():
                scores, slope = tiles.scores(q, key, tiles.visible(i, j, offset, first))
            weights = jnp.exp(scores - lse[..., None])
            d_weights = _rows_by_columns(d_out.astype(value.dtype), value)
            d_raw = weights * (d_weights - shift[..., None]) * slope
            d_q = d_q + _weights_by_columns(d_raw, key)
            d_k = add(d_k, _weights_by_rows(d_raw, q), j)
            return d_q, d_k, add(d_v, _weights_by_rows(weights, d_out.astype(value.dtype)), j)

        ends = tiles.seen(i, offset, first)
        d_q, d_k, d_v = tiles.each_column(ends, column, (_full(q.shape, 0, q), *state))
        return (d_k, d_v), d_q

    def none(x: Array) -> Array:
        batch, groups, tokens, size = x.shape
        return _full((batch, tokens, groups, size), 0, q)

    found, d_q = tiles.each_row(row, (none(k), none(v)), q, lse, d_out, shift)
    d_k, d_v = (jnp.swapaxes(x, 1, 2) for x in found)
    return tiles.joined(d_q), d_k, d_v


def _attend_forward(rule: Rule, *inputs: Array) -> tuple[Any, Any]:
    out, lse = (checkpoint_name(x, "attention") for x in forward(rule, *inputs))
    return (out, lse), (inputs, out, lse)


def _attend_backward(rule: Rule, saved: Any, gradients: tuple[Array, Array]) -> tuple[Any, ...]:
    inputs, out, lse = saved
    d_out, d_lse = gradients
    shift = jnp.sum(d_out * out, axis=-1) - d_lse
    found = backward(rule, inputs, lse, d_out, shift)
    return *(d.astype(x.dtype) for d, x in zip(found, inputs, strict=False)), None, None


_attend.defvjp(_attend_forward, _attend_backward)
