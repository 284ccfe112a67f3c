"""Attention over a sequence that is split over devices.

Source: Ring Attention (arXiv 2310.01889), with the shards in zigzag order (see
`sharding.zigzag`) so that every device computes as much at every step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from gam_jax.ops.attention import attend_tokens, backward, forward, merge, with_shared, with_sinks
from gam_jax.ops.tiles import EMPTY, Rule
from sharding import collectives, zigzag
from sharding.exchange import ring, ring_home

Halves = tuple[Any, Any]


def ring_attention(
    rule: Rule,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    axis: str,
    sinks: Float[Array, H] | None = None,
    shared: tuple[Float[Array, "B G S K"], Float[Array, "B G S K"]] | None = None,
    first: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T H K"]:
    """Causal attention over every key of the sequence, of this device's queries.

    Keys and values go round the ring; in the backward pass they go round again with their
    gradients, so a device never holds more than two shards. Half shards are exchanged on entry
    and exit.

    Args:
      rule: causal, without a window.
      q: queries of this device's tokens, in order.
      k: their keys.
      v: their values.
      axis: mesh axis that splits the tokens.
      sinks: see `ops.attention.with_sinks`.
      shared: keys and values that every query sees besides, alike on every device.
      first: for each query the first key of the whole sequence that it sees. Blocks that nobody
        sees are then not computed, but keys are sent as ever.

    Returns:
      The mixture in the dtype of q.

    Raises:
      ValueError: an odd number of tokens on a device.
    """
    batch, tokens, heads, size = q.shape
    groups = k.shape[2]
    both = zigzag.to_zigzag(jnp.concatenate([q, k, v], axis=2), axis, dim=1)
    queries, k, v = jnp.split(both, [heads, heads + groups], axis=2)
    q = queries.reshape(batch, tokens, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    k, v = (jnp.swapaxes(x, 1, 2) for x in (k, v))
    if first is None:
        pair: tuple[Array, Array] = _ring(rule, axis, None, *collectives.vary_alike(q, k, v))
    else:
        first = zigzag.to_zigzag(first, axis, dim=1)
        pair = _ring(rule, axis, *collectives.vary_alike(first, q, k, v))
    out, lse = pair
    out = out.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, heads, size)
    lse = lse.transpose(0, 3, 1, 2).reshape(batch, tokens, heads)
    if shared is not None:
        out, lse = with_shared((out, lse), rule, queries, *shared)
    if sinks is not None:
        out = with_sinks(out, lse, sinks)
    return zigzag.from_zigzag(out.astype(both.dtype), axis, dim=1)


def window_attention(
    rule: Rule,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T G K"],
    axis: str,
    first: Int[Array, "B T"] | int = 0,
) -> tuple[Float[Array, "B T H K"], Float[Array, "B T H"]]:
    """Causal attention over the last `rule.window` keys: `attend_tokens` of this device's queries.

    Only the window's keys are sent: they come from the shard to the left, and from more of them
    where a shard is shorter than the window. `first` is as in `ring_attention`.
    """
    tokens, missing = k.shape[1], rule.window - 1
    size, own = lax.axis_size(axis), lax.axis_index(axis)
    parts = [jnp.concatenate([k, v], axis=2)]
    step = [(i, i + 1) for i in range(size - 1)]
    sent = collectives.as_varying(parts[0], axis)
    halo = min(missing, (size - 1) * tokens)
    for left in range(halo, 0, -tokens):
        sent = lax.ppermute(sent[:, max(0, tokens - left) :], axis, step)
        parts.insert(0, sent)
    k, v = jnp.split(jnp.concatenate(parts, axis=1), 2, axis=2)
    return attend_tokens(rule, q, k, v, halo, jnp.maximum(0, first + halo - own * tokens))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(
    rule: Rule, axis: str, first: Array | None, q: Array, k: Array, v: Array
) -> tuple[Array, Array]:
    """Grouped queries [B, G, R, T, K], keys and values [B, G, T, K], in zigzag order."""
    early, late = _halves(q, 3)
    full, half = dataclasses.replace(rule, causal=False), early.shape[3]
    own, firsts = lax.axis_index(axis), _Firsts(first, half, axis)
    zero = jnp.zeros((), jnp.int32)
    begin = forward(rule, early, _halves(k, 2)[0], _halves(v, 2)[0], zero, firsts.of_early(own))
    none = jnp.zeros_like(begin[0]), jnp.full_like(begin[1], EMPTY)

    def step(state: Halves, block: tuple[Array, Array], source: Array | int) -> Halves:
        (k1, k2), (v1, v2) = (_halves(x, 2) for x in block)
        before, offset = source < own, jnp.where(source == own, 0, half)
        # The late half sees the early one of every shard. Then either the early half sees that
        # of a shard before it, or the late half sees the late one of its own or a later shard.
        one, other = state
        other = merge(other, forward(full, late, k1, v1, zero, firsts.of_late(source)))
        q, k, v = (jnp.where(before, x, y) for x, y in ((early, late), (k1, k2), (v1, v2)))
        out, lse = forward(rule, q, k, v, offset, firsts.of_chosen(source, before))
        one = merge(one, (out, jnp.where(before, lse, EMPTY)))
        return one, merge(other, (out, jnp.where(before, EMPTY, lse)))

    one, other = ring(step, (begin, none), (k, v), axis)
    return _joined((one[0], other[0]), 3), _joined((one[1], other[1]), 3)


@dataclasses.dataclass(frozen=True)
class _Firsts:
    """The first key that each query sees, counted in a half shard of keys.

    Attributes:
      first: [B, T] in zigzag order, counted in the whole sequence; None where all see from its
        beginning on.
      half: tokens in a half.
      axis: mesh axis that splits the tokens.
    """

    first: Array | None
    half: int
    axis: str

    def of_early(self, source: Any) -> Array:
        """Of the early half's queries, in the early half of a shard's keys."""
        return self._counted(0, source)

    def of_late(self, source: Any) -> Array:
        """Of the late half's queries, in the early half of a shard's keys."""
        return self._counted(1, source)

    def of_chosen(self, source: Any, before: Array) -> Array:
        """As `of_early` where `before`, else of late queries in the late half of the keys."""
        if self.first is None:
            return self._counted(0, source)
        late = self._counted(1, 2 * lax.axis_size(self.axis) - 1 - source)
        return jnp.where(before, self._counted(0, source), late)

    def _counted(self, half: int, piece: Any) -> Array:
        if self.first is None:
            return jnp.zeros((), jnp.int32)
        return _halves(self.first, 1)[half] - piece * self.half


def _ring_forward(rule: Rule, axis: str, *inputs: Any) -> tuple[Any, Any]:
    pair: tuple[Array, Array] = _ring(rule, axis, *inputs)
    out, lse = (checkpoint_name(x, "attention") for x in pair)  # a ring is not to run again
    return (out, lse), (inputs, out, lse)


def _ring_backward(rule: Rule, axis: str, saved: Any, gradients: tuple[Array, Array]) -> Any:
    inputs, out, lse = saved
    first, q, k, v = inputs
    d_out, d_lse = gradients
    shift = jnp.sum(d_out * out, axis=-1) - d_lse
    parts = [_halves(x, 3) for x in (q, lse, d_out, shift)]
    early, late = ([pair[i] for pair in parts] for i in range(2))
    full, half = dataclasses.replace(rule, causal=False), early[0].shape[3]
    own: Any = lax.axis_index(axis)
    firsts = _Firsts(first, half, axis)

    def pull(
        rule: Rule, rows: list[Array], k: Array, v: Array, offset: Any, first: Array
    ) -> tuple[Array, Array, Array]:
        q, *rest = rows
        return backward(rule, (q, k, v, jnp.asarray(offset, jnp.int32), first), *rest)

    begin = firsts.of_early(own)
    d_q1, d_k1, d_v1 = pull(rule, early, _halves(k, 2)[0], _halves(v, 2)[0], 0, begin)
    state = d_q1, jnp.zeros_like(d_q1)
    found = (d_k1, d_v1), (jnp.zeros_like(d_k1), jnp.zeros_like(d_v1))

    def step(state: Halves, block: Any, found: Halves, source: Array | int) -> Any:
        (k1, k2), (v1, v2) = (_halves(x, 2) for x in block)
        before, offset = source < own, jnp.where(source == own, 0, half)
        d_late, *d_first = pull(full, late, k1, v1, 0, firsts.of_late(source))
        rows = [jnp.where(before, x, y) for x, y in zip(early, late, strict=True)]
        k, v = jnp.where(before, k1, k2), jnp.where(before, v1, v2)
        chosen = firsts.of_chosen(source, before)
        d_rows, *d_chosen = pull(rule, rows, k, v, offset, chosen)

        def put(pair: Sequence[Array], d: Array) -> Halves:
            none = jnp.zeros_like(d)
            return pair[0] + jnp.where(before, d, none), pair[1] + jnp.where(before, none, d)

        state = put((state[0], state[1] + d_late), d_rows)
        one, other = found
        one = [x + d for x, d in zip(one, d_first, strict=True)]
        pairs = [
            put(pair, d) for pair, d in zip(zip(one, other, strict=True), d_chosen, strict=True)
        ]
        return state, (tuple(p[0] for p in pairs), tuple(p[1] for p in pairs))

    d_q, (one, other) = ring_home(step, state, (k, v), found, axis)
    d_kv = (_joined(pair, 2) for pair in zip(one, other, strict=True))
    found = _joined(d_q, 3), *d_kv
    return None, *(d.astype(x.dtype) for d, x in zip(found, (q, k, v), strict=True))


_ring.defvjp(_ring_forward, _ring_backward)


def _halves(x: Array, dim: int) -> tuple[Array, Array]:
    first, second = jnp.split(x, 2, axis=dim)
    return first, second


def _joined(pair: tuple[Array, ...], dim: int) -> Array:
    return jnp.concatenate(pair, axis=dim)
