"""Attention whose keys and values are made from one short vector a token."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gam_jax.layers.attention import check_positions
from gam_jax.layers.base import WHOLE, Layer, known, row_counter
from gam_jax.ops.attention import attend_cache, attend_tokens
from gam_jax.ops.cache import append_rows, cache_size, check_fits, known_most, read_rows, write_rows
from gam_jax.ops.documents import Spans, spans_of
from gam_jax.ops.dropout import dropout
from gam_jax.ops.fused_attention import for_backend
from gam_jax.ops.linear import by_rows, from_heads, linear, linear_flat
from gam_jax.ops.norm import rms_norm
from gam_jax.ops.pages import PagedKeys, Pages, check_one_document
from gam_jax.ops.rotary import Positions, rotary
from gam_jax.ops.tiles import Rule
from gam_jax.params import Param, Params, Table, fan_in, ones, zeros
from sharding import collectives, residual
from sharding.axes import Axes
from sharding.bounds import Count, NotNegative, Rate, Size, check_bounds

NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class LatentAttention(Layer):
    """Multi-head latent attention: c = norm(x W_c), k_h = [c K_h, turned(x W_r)], v_h = c V_h.

    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1, as DeepSeek-V3 uses it. The carry is the
    latent c and one turned key that all heads share: R + P numbers a token, whatever the heads.
    On a carry the heads' maps K_h and V_h are laid on queries and mixtures, so that latents are
    attended to as they are cached (appendix C there); at the start of a sequence keys and values
    are made, which costs less. Heads are split over `tensor`; over `seq` the latents are gathered,
    (R + P) numbers a token.

    Attributes:
      width: D.
      heads: H.
      latent: R, numbers that a token's keys and values are made from.
      query_latent: Q, likewise of queries; 0 makes them from x.
      head_size: N, channels of a head's keys without positions.
      rotary_size: P, channels that are turned by position, of one key for all heads.
      value_size: V, channels of a head's values; 0 for N.
      rotary: base of the rotary positions' wavelengths; 0 turns nothing (Kimi Linear).
      positions: how those are stretched.
      context: tokens that the cache holds, and so the most that a sequence may have.
      scale: of the scores; 0 for 1 / sqrt(N + P).
      bias: whether the maps to the latents and to the shared key, and the output, have one.
      dropout: rate on the output in training.
      block_size: tokens of a block of queries, and of keys, in which scores are computed; 0 for
        what is usual. `gam tune` finds it.
    """

    width: Size | None = None
    heads: Size = 4
    latent: Size = 64
    query_latent: Count = 0
    head_size: Size = 32
    rotary_size: Size = 16
    value_size: Count = 0
    rotary: NotNegative = 10_000.0
    positions: Positions = Positions()
    context: Size = 2048
    scale: NotNegative = 0.0
    bias: bool = False
    dropout: Rate | None = None
    block_size: Count = 0

    computed: ClassVar[tuple[str, ...]] = ("block_size",)

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.rotary and self.positions != Positions():
            raise ValueError("LatentAttention.positions stretch what rotary=0 does not turn")
        if self.rotary and self.rotary_size % 2:
            raise ValueError(f"LatentAttention.rotary_size={self.rotary_size} is not 2 or 4 or ...")
        if self.rotary:
            check_positions(self.positions, self.rotary, self.rotary_size, "LatentAttention")

    @staticmethod
    def from_saved(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fields of a saved config: `yarn` was all of `positions` in gam_jax 0.1."""
        kept = {name: value for name, value in values.items() if name != "yarn"}
        old = values.get("yarn")
        if isinstance(old, Mapping) and old.get("factor", 1) != 1:
            kept["positions"] = {"kind": "yarn", **old}
        return kept

    @property
    def limit(self) -> int:
        """The context."""
        return self.context

    @property
    def rule(self) -> Rule:
        """What a query makes of a key."""
        rule = Rule(self.scale or (self.head_size + self.rotary_size) ** -0.5)
        return rule.in_blocks(self.block_size)

    def for_length(self, tokens: int) -> LatentAttention:
        """With a cache in whole blocks for so many tokens, at most the context."""
        context = cache_size(tokens, self.context)
        return dataclasses.replace(super().for_length(tokens), context=context)

    def table(self) -> Table:
        """Queries; latent [D, R], its norm [R], shared_key [D, P]; key, value [R, H, ...]; out.

        query [D, H, N + P]; with Q, query_latent [D, Q], query_norm [Q] and query [Q, H, N + P].
        With biases query_latent_bias [Q], latent_bias [R], shared_key_bias [P] and out_bias [D].
        """
        width, heads, latent = known(self.width, "width", self), self.heads, self.latent
        size, values = self.head_size + self.rotary_size, self.value_size or self.head_size
        source = self.query_latent or width
        table: dict[str, Param] = {}
        if self.query_latent:
            shape = (width, self.query_latent)
            table["query_latent"] = Param(shape, ("embed", None), fan_in(width))
            table["query_norm"] = Param((self.query_latent,), (None,), ones, decay=False)
        first = "latent" if self.query_latent else "embed"
        table["query"] = Param((source, heads, size), (first, "heads", None), fan_in(source))
        table["latent"] = Param((width, latent), ("embed", None), fan_in(width))
        table["latent_norm"] = Param((latent,), (None,), ones, decay=False)
        shape = (width, self.rotary_size)
        table["shared_key"] = Param(shape, ("embed", None), fan_in(width))
        for name, channels in (("key", self.head_size), ("value", values)):
            shape = (latent, heads, channels)
            table[name] = Param(shape, ("latent", "heads", None), fan_in(latent))
        inside = heads * values
        table["out"] = Param((heads, values, width), ("heads", None, "embed"), fan_in(inside))
        if self.bias:
            queries = ("query_latent",) if self.query_latent else ()
            for name in (*queries, "latent", "shared_key"):
                shape = table[name].shape[1:]
                table[f"{name}_bias"] = Param(shape, (None,), fan_in(width), decay=False)
            table["out_bias"] = Param((width,), ("embed",), fan_in(inside), decay=False)
        return table

    def carry_table(self, batch: int) -> Any:
        """latent [B, S, R], shared_key [B, S, P], turned, and each row's position [B].

        The cache begins, and positions count, with the document that goes on.
        """
        sizes = {"latent": self.latent, "shared_key": self.rotary_size}
        axes = ("batch", "token", None)
        table = {
            name: Param((batch, self.context, size), axes, zeros, cache=True)
            for name, size in sizes.items()
        }
        return table | {"position": row_counter(batch)}

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Any = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Heads are split inside, and summed on the way out.

        Raises:
          ValueError: more tokens than the context (where the position is traced and not known
            when this is compiled, the outputs of such a chunk are NaN instead; where documents
            begin in it, those of tokens beyond the context of their document); or beyond what the
            positions are for, see `Positions.reaching`.
        """
        batch = x.shape[0]
        position = jnp.zeros(batch, jnp.int32) if carry is None else carry["position"]
        fresh = carry is None or carry["latent"] is None
        spans = None if starts is None else spans_of(starts, position, axes.seq)
        places = self._places(x.shape[1], 0 if carry is None else position[:, None], spans, axes)
        tokens = places[1].shape[-1] * collectives.axis_size(axes.seq)
        end = known_most(position) + tokens
        positions = self.positions.reaching(end, whole=fresh and spans is None)
        new = self._compressed(params, x, places[0], positions, axes)
        check_fits(
            position if spans is None else 0, tokens, self.limit or None, "LatentAttention.context"
        )
        q = self._queries(params, x, places[1], positions, axes)
        if carry is not None and isinstance(carry["latent"], Pages):
            check_one_document(spans)
            y, cache = self._in_pages(params, q, new, carry, position, axes)
            return self._out(params, y, axes, key), {**cache, "position": position + tokens}
        read, cache = self._caches(None if fresh else carry, new, position, spans)
        # Heads and tokens of a device use what all hold alike: the gradient is summed here, once.
        split = sorted(name for name in (axes.of("heads"), axes.seq) if name is not None)
        used = {
            name: collectives.as_varying(array.astype(q.dtype), split)
            for name, array in read.items()
        }
        own = collectives.axis_index(axes.seq) * q.shape[1]
        first = 0 if spans is None else spans.begun
        rule = for_backend(self.rule, axes.backend, q.shape[1])
        if fresh:
            mixed = self._expanded(rule, params, q, used, own, first)
        else:
            if spans is None:
                fits = (position + tokens <= self.context)[:, None]
            else:
                position = jnp.minimum(position, self.context)
                first, fits = position[:, None] + first, spans.places < self.context
            mixed = self._absorbed(rule, params, q, used, position + own, first)
            mixed = jnp.where(fits[..., None, None], mixed, jnp.nan)
        after = position + tokens if spans is None else spans.after
        return self._out(params, mixed, axes, key), {**cache, "position": after}

    def _out(self, params: Params, mixed: Array, axes: Axes, key: Array | None) -> Array:
        """What the heads give, [B, T, H, V], on the way out."""
        out = params["out"]
        mixed = mixed.reshape(*mixed.shape[:2], -1)
        y = residual.leave_map(by_rows(from_heads), out, mixed, axes.of("heads"), axes)
        if self.bias:
            y = y + params["out_bias"]
        return dropout(y, self.dropout or 0.0, key, axes)

    def _in_pages(
        self,
        params: Params,
        q: Array,
        new: dict[str, Array],
        carry: Any,
        position: Int[Array, B],
        axes: Axes,
    ) -> tuple[Float[Array, "B T H V"], dict[str, Pages]]:
        """The mixture over rows in pages, NaN for tokens beyond them, and the pages after."""
        cache = {n: carry[n].write(array, position, axis=1) for n, array in new.items()}
        count = position + new["latent"].shape[1]
        both = cache["latent"], cache["shared_key"]
        keys = PagedKeys.of(both, count, q.dtype, axes.backend)
        values = PagedKeys.of(both[:1], count, q.dtype, axes.backend)
        offset = position + collectives.axis_index(axes.seq) * q.shape[1]
        rule = for_backend(self.rule, axes.backend, q.shape[1])
        mixed = self._over_latents(rule, params, q, keys, values, offset, 0)
        fits = offset[:, None] + jnp.arange(q.shape[1]) < keys.shape[2]
        return jnp.where(fits[..., None, None], mixed, jnp.nan), cache

    def _places(
        self, tokens: int, before: Array | int, spans: Spans | None, axes: Axes
    ) -> tuple[Int[Array, "... t"], Int[Array, "... T"]]:
        """Of the `tokens` that this device holds of the stream, and of all that it works on."""
        if spans is not None:
            return collectives.own_shard(spans.places, axes.residual, dim=1), spans.places
        own = before + residual.first_token(tokens, axes) + jnp.arange(tokens)
        total = tokens * collectives.axis_size(axes.residual)
        return own, before + collectives.axis_index(axes.seq) * total + jnp.arange(total)

    def _caches(
        self, carry: Any, new: dict[str, Array], position: Array, spans: Spans | None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """What queries read, and the cache after; at the start of a sequence carry is None."""
        if carry is None:
            last = None if spans is None else spans.last
            return new, {name: self._kept(array, last) for name, array in new.items()}
        if spans is None:
            cache = {n: write_rows(carry[n], array, position, axis=1) for n, array in new.items()}
            return cache, cache
        position = jnp.minimum(position, self.context)
        read = {n: append_rows(carry[n], array, position, axis=1) for n, array in new.items()}
        last = position + spans.last
        return read, {n: self._kept(array, last) for n, array in read.items()}

    def _compressed(
        self,
        params: Params,
        x: Array,
        places: Int[Array, "... T"],
        positions: Positions,
        axes: Axes,
    ) -> dict[str, Array]:
        """latent [B, S, R] and turned shared_key [B, S, P] of all tokens, alike on all devices."""
        flat = x.reshape(-1, x.shape[-1])
        latent = linear(flat, params["latent"], params.get("latent_bias"))
        latent = rms_norm(latent, params["latent_norm"], NORM_EPS)
        shared = linear(flat, params["shared_key"], params.get("shared_key_bias"))
        shared = shared.reshape(*x.shape[:2], 1, -1)
        if self.rotary:
            shared = rotary(shared, places, self.rotary, positions)
        found = {"latent": latent.reshape(*x.shape[:2], -1), "shared_key": shared[:, :, 0]}
        for axis in reversed(axes.tokens):
            found = {n: collectives.all_gather(y, axis, dim=1) for n, y in found.items()}
        return found

    def _queries(
        self,
        params: Params,
        x: Array,
        places: Int[Array, "... T"],
        positions: Positions,
        axes: Axes,
    ) -> Float[Array, "B T H N+P"]:
        """This device's heads' queries, their last P channels turned."""
        if self.query_latent:
            flat = x.reshape(-1, x.shape[-1])
            flat = linear(flat, params["query_latent"], params.get("query_latent_bias"))
            x = rms_norm(flat, params["query_norm"], NORM_EPS).reshape(*x.shape[:2], -1)
        weight = params["query"]
        q = residual.enter_map(by_rows(linear_flat), weight, x, axes, "heads")
        q = q.reshape(*q.shape[:2], -1, weight.shape[-1])
        if not self.rotary:
            return q
        plain, turned = jnp.split(q, [self.head_size], axis=-1)
        turned = rotary(turned, places, self.rotary, positions)
        return jnp.concatenate([plain, turned], axis=-1)

    def _expanded(
        self,
        rule: Rule,
        params: Params,
        q: Array,
        used: dict[str, Array],
        offset: Array | int,
        first: Array | int,
    ) -> Float[Array, "B T H V"]:
        """Over keys and values made for each head."""
        latent, shared = used["latent"], used["shared_key"]
        flat = latent.reshape(-1, latent.shape[-1])
        keys, values = (
            linear(flat, params[name].reshape(flat.shape[1], -1)).reshape(
                *latent.shape[:2], *params[name].shape[1:]
            )
            for name in ("key", "value")
        )
        shape = (*keys.shape[:3], self.rotary_size)
        keys = jnp.concatenate([keys, jnp.broadcast_to(shared[:, :, None], shape)], axis=-1)
        return attend_tokens(rule, q, keys, values, offset, first)[0].astype(q.dtype)

    def _absorbed(
        self,
        rule: Rule,
        params: Params,
        q: Array,
        used: dict[str, Array],
        offset: Array,
        first: Array | int,
    ) -> Float[Array, "B T H V"]:
        """Over latents that lie in one piece."""
        keys = jnp.concatenate([used["latent"], used["shared_key"]], axis=-1)[:, None]
        values = used["latent"][:, None]
        return self._over_latents(rule, params, q, keys, values, offset, first)

    def _over_latents(
        self,
        rule: Rule,
        params: Params,
        q: Array,
        keys: Array | PagedKeys,
        values: Array | PagedKeys,
        offset: Array,
        first: Array | int,
    ) -> Float[Array, "B T H V"]:
        """All heads of queries share one head of keys, and its values."""
        plain, turned = jnp.split(q, [self.head_size], axis=-1)
        lifted = jnp.einsum("bthn,rhn->bthr", plain, params["key"])
        q = jnp.concatenate([lifted, turned], axis=-1)
        mixed, _ = attend_cache(rule, q, keys, values, offset, first)
        return jnp.einsum("bthr,rhv->bthv", mixed.astype(q.dtype), params["value"])

    def _kept(self, x: Array, last: Int[Array, B] | None) -> Array:
        """The cache after x: of all its tokens, or of those from `last` on."""
        if last is not None:
            return read_rows(x, last, self.context, axis=1)
        return jnp.pad(x, ((0, 0), (0, self.context - x.shape[1]), (0, 0)))
