"""Causal attention that streams: of a whole sequence, or over what came before it."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gam_jax.ops.attention import attend_cache, attend_tokens, with_shared, with_sinks
from gam_jax.ops.cache import append_rows, check_fits, read_rows, write_rows
from gam_jax.ops.checks import check_shape, check_starts, check_tokens
from gam_jax.ops.documents import Spans, spans_of
from gam_jax.ops.fused_attention import attention, for_backend
from gam_jax.ops.pages import PagedKeys, Pages, check_one_document
from gam_jax.ops.ring_attention import ring_attention, window_attention
from gam_jax.ops.tiles import BLOCK, Rule
from sharding import collectives
from sharding.errors import UserError

Shared = tuple[Array, Array]
"""Keys and values [B, G, m, K] that every query sees."""


class KeyValues(NamedTuple):
    """The state of `attend`: what later tokens may see of the document that goes on.

    Attributes:
      key: [B, G, S, K], with room for S tokens, in the dtype of the first keys. A document's first
        token stands at 0; with a window the last token stands at the end.
      value: likewise.
      position: int32 [B], how many tokens that document has by now.
    """

    key: Array
    value: Array
    position: Array

    @classmethod
    def empty(cls, batch: int, heads: int, size: int, room: int) -> KeyValues:
        """The state at the start of a sequence.

        Args:
          batch: B.
          heads: G, of keys.
          size: K.
          room: S: the most tokens that a document may have, or with a window that less 1.
        """
        zeros = jnp.zeros((batch, heads, room, size), jnp.float32)
        return cls(zeros, zeros, jnp.zeros(batch, jnp.int32))


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    *,
    scale: float | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: Float[Array, H] | None = None,
    room: int | None = None,
    state: KeyValues | None = None,
    axis: str | None = None,
    starts: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T H K"], KeyValues]:
    """y_t = sum_s p_ts v_s over the s <= t that t sees, p_ts = exp(q_t . k_s scale) / their sum.

    Softmax attention in blocks (FlashAttention-2, arXiv 2307.08691): memory grows with the tokens,
    not with their square, forward and backward. Query head h reads key head h // (H / G) (grouped
    queries, arXiv 2305.13245). Positions are the caller's: `gam_jax.ops.documents.places` counts
    them in each document. Scores and sums are float32.

    Args:
      q: queries.
      k: keys, turned by their positions if they are to be.
      v: values.
      scale: None for 1 / sqrt(K).
      window: a token sees that many last tokens, itself among them; 0 for all.
      soft_cap: scores become cap * tanh(score / cap) (arXiv 2408.00118); 0 for none.
      sinks: the score, for each head, of one more key, whose value is 0 (arXiv 2309.17453).
      room: tokens that the state has room for, where none is given and there is no window; None
        for those of this call. A state that nobody uses costs nothing under `jax.jit`.
      state: what is carried in, the same on all devices of `axis`; None for none.
      axis: mesh axis that splits the tokens. Without a state, keys go round a ring (arXiv
        2310.01889) and a device's tokens must be even in number; with a window, the window's keys
        are sent; with a state, all keys of the call are gathered.
      starts: true where documents begin: a token sees tokens of its own document alone. None where
        all tokens belong to one.

    Returns:
      y in the dtype of q, and the state after the last token. Where the state has no room and the
      count is traced, so that it cannot be refused, y is NaN.

    Raises:
      UserError: shapes that do not fit, `starts` that is not bool, more tokens than the state has
        room for.
    """
    _check(q, k, v, window, sinks, room, state, starts)
    total = q.shape[1] * collectives.axis_size(axis)
    rule = causal_rule(q.shape[3] ** -0.5 if scale is None else scale, window, soft_cap)
    if state is None:
        held, position = None, jnp.zeros(q.shape[0], jnp.int32)
        room = window - 1 if window else room or total
    else:
        held, position, room = state[:2], state.position, state.key.shape[2]
    spans = None if starts is None else spans_of(starts, position, axis)
    limit = None if window else room
    check_fits(position if spans is None else 0, total, limit, "room of attend's state")
    y, (key, value) = attend_spans(
        rule, room, q, k, v, held, position, axis=axis, sinks=sinks, spans=spans
    )
    return y, KeyValues(key, value, position + total if spans is None else spans.after)


def causal_rule(scale: float, window: int, soft_cap: float) -> Rule:
    """What a query makes of a key; narrow windows are computed in small blocks."""
    block = min(BLOCK, max(64, 1 << window.bit_length())) if window else BLOCK
    return Rule(scale, True, window, soft_cap, block)


def attend_spans(
    rule: Rule,
    room: int,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    held: tuple[Any, Any] | None,
    position: Int[Array, B],
    *,
    axis: str | None,
    sinks: Float[Array, H] | None = None,
    shared: Shared | None = None,
    spans: Spans | None = None,
    backend: str | None = None,
) -> tuple[Float[Array, "B T H K"], tuple[Any, Any]]:
    """`attend` where documents are counted already: the mixture, and keys and values after.

    Args:
      rule: causal.
      room: tokens that keys and values after the call have room for.
      q: queries.
      k: keys.
      v: values.
      held: keys and values [B, G, S, K] that came before, or `Pages` of them; None at the start of
        a sequence.
      position: how many tokens came before.
      axis: mesh axis that splits the tokens.
      sinks: see `attend`.
      shared: keys and values that every query sees.
      spans: where documents lie, if there are several.
      backend: where it will run, as "cpu"; None for JAX's default.
    """
    rule = for_backend(rule, backend, q.shape[1])
    if held is None:
        y = _from_start(rule, q, k, v, axis, sinks, shared, spans, backend)
        return y, (_kept(rule, room, k, axis, spans), _kept(rule, room, v, axis, spans))
    call = _Call(rule, q, position, axis, sinks, shared, spans, backend)
    if rule.window:
        return call.in_window(k, v, held)
    return (
        call.in_pages(k, v, held) if isinstance(held[0], Pages) else call.in_cache(k, v, held, room)
    )


def _from_start(
    rule: Rule,
    q: Array,
    k: Array,
    v: Array,
    axis: str | None,
    sinks: Array | None,
    shared: Shared | None,
    spans: Spans | None,
    backend: str | None,
) -> Array:
    """What a sequence that begins here gives: no cache is looked into."""
    first = None if spans is None else spans.begun
    if axis is not None and not rule.window:
        return ring_attention(rule, q, k, v, axis, sinks, shared, first)
    if axis is None and sinks is None and shared is None:
        return attention(rule, q, k, v, backend, first)
    first = 0 if first is None else first
    if axis is None:
        found = attend_tokens(rule, q, k, v, 0, first)
    else:
        found = window_attention(rule, q, k, v, axis, first)
    return _finished(rule, found, q, sinks, shared)


@dataclasses.dataclass(frozen=True)
class _Call:
    """Queries that follow on a cache; every device sees all keys of the call."""

    rule: Rule
    q: Array
    position: Array
    axis: str | None
    sinks: Array | None
    shared: Shared | None
    spans: Spans | None
    backend: str | None

    @property
    def own(self) -> Any:
        """The first of this device's tokens, counted in the call."""
        return collectives.axis_index(self.axis) * self.q.shape[1]

    def in_window(self, k: Array, v: Array, held: Any) -> tuple[Array, tuple[Array, Array]]:
        """The mixture, and the last keys and values."""
        room, new = held[0].shape[2], (_whole(k, self.axis), _whole(v, self.axis))
        keys, values = (
            jnp.concatenate([old.astype(x.dtype), x], axis=2)
            for old, x in zip(held, new, strict=True)
        )
        first = room - self.position if self.spans is None else room + self.spans.begun
        first = jnp.maximum(0, first)
        found = attend_cache(self.rule, self.q, keys, values, room + self.own, first)
        y = _finished(self.rule, found, self.q, self.sinks, self.shared)
        key, value = (_last(x, room).astype(held[0].dtype) for x in (keys, values))
        return y, (key, value)

    def in_cache(
        self, k: Array, v: Array, held: Any, room: int
    ) -> tuple[Array, tuple[Array, Array]]:
        """The mixture, NaN where there is no room, and the keys and values of the last document."""
        position, spans = self.position, self.spans
        pairs = list(zip(held, (_whole(k, self.axis), _whole(v, self.axis)), strict=True))
        if spans is None:
            first, fits = 0, (position + pairs[0][1].shape[2] <= room)[:, None]
            keys, values = (write_rows(old, x, position, axis=2) for old, x in pairs)
        else:
            position = jnp.minimum(position, room)
            first, fits = spans.begun + position[:, None], spans.places < room
            keys, values = (append_rows(old, x, position, axis=2) for old, x in pairs)
        read = keys.astype(self.q.dtype), values.astype(self.q.dtype)
        found = attend_cache(self.rule, self.q, *read, position + self.own, first)
        y = _finished(self.rule, found, self.q, self.sinks, self.shared)
        if spans is not None:
            last = position + spans.last
            keys, values = (read_rows(x, last, room, axis=2) for x in (keys, values))
        return jnp.where(fits[..., None, None], y, jnp.nan), (keys, values)

    def in_pages(self, k: Array, v: Array, held: Any) -> tuple[Array, tuple[Pages, Pages]]:
        """As `in_cache`, of rows that hold one document each: NaN for tokens beyond their pages."""
        check_one_document(self.spans)
        new = _whole(k, self.axis), _whole(v, self.axis)
        pages = [old.write(x, self.position, axis=2) for old, x in zip(held, new, strict=True)]
        count = self.position + new[0].shape[2]
        keys, values = (PagedKeys.of((x,), count, self.q.dtype, self.backend) for x in pages)
        offset = self.position + self.own
        found = attend_cache(self.rule, self.q, keys, values, offset)
        y = _finished(self.rule, found, self.q, self.sinks, self.shared)
        fits = offset[:, None] + jnp.arange(self.q.shape[1]) < keys.shape[2]
        return jnp.where(fits[..., None, None], y, jnp.nan), (pages[0], pages[1])


def _whole(x: Array, axis: str | None) -> Array:
    """Keys or values of all tokens, heads first, as a cache keeps them."""
    return jnp.swapaxes(collectives.all_gather(x, axis, dim=1), 1, 2)


def _kept(rule: Rule, room: int, x: Array, axis: str | None, spans: Spans | None) -> Array:
    """Keys or values [B, G, S, K] after the first call: filled up, at the end without a window."""
    x = _whole(x, axis)
    if rule.window:
        return _last(jnp.pad(x, ((0, 0), (0, 0), (max(0, room - x.shape[2]), 0), (0, 0))), room)
    if spans is not None:
        return read_rows(x, spans.last, room, axis=2)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, max(0, room - x.shape[2])), (0, 0)))
    return _last(x, room)


def _last(x: Array, room: int) -> Array:
    return x[:, :, x.shape[2] - room :]


def _finished(
    rule: Rule,
    found: tuple[Array, Array],
    q: Array,
    sinks: Array | None,
    shared: Shared | None,
) -> Array:
    out, lse = found if shared is None else with_shared(found, rule, q, *shared)
    return (out if sinks is None else with_sinks(out, lse, sinks)).astype(q.dtype)


def _check(
    q: Array,
    k: Array,
    v: Array,
    window: int,
    sinks: Array | None,
    room: int | None,
    state: KeyValues | None,
    starts: Array | None,
) -> None:
    op = "attend"
    check_tokens(op, "q", q, "[B, T, H, K]")
    check_tokens(op, "k", k, "[B, T, G, K]")
    (batch, tokens, heads, size), groups = q.shape, k.shape[2]
    check_shape(op, "k", k, (batch, tokens, groups, size))
    check_shape(op, "v", v, k.shape)
    if heads % groups:
        raise UserError(f"{op}: q has {heads} heads, no multiple of the {groups} of k and v")
    if window < 0:
        raise UserError(f"{op}: window {window} is not at least 0")
    if room is not None and (window or state is not None):
        raise UserError(f"{op}: room is {room}, and a window or a state has its own: leave it out")
    check_shape(op, "sinks", sinks, (heads,))
    check_starts(op, starts, (batch, tokens))
    if state is not None:
        held = window - 1 if window else state.key.shape[2]
        for name in ("key", "value"):
            check_shape(op, f"state.{name}", getattr(state, name), (batch, groups, held, size))
        check_shape(op, "state.position", state.position, (batch,))
