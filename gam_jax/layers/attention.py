"""Softmax attention."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gam_jax.layers.base import WHOLE, Layer, known, row_counter
from gam_jax.ops.cache import cache_size, check_fits, known_most
from gam_jax.ops.cached_attention import Shared, attend_spans, causal_rule
from gam_jax.ops.documents import spans_of
from gam_jax.ops.dropout import dropout
from gam_jax.ops.linear import by_rows, from_heads, linear
from gam_jax.ops.norm import rms_norm
from gam_jax.ops.rotary import Positions, rotary
from gam_jax.ops.tiles import Rule
from gam_jax.params import Param, Params, Table, fan_in, ones, zeros
from gam_jax.units import ALL_CHANNELS, WIDTH, Part, Unit, UnitTable
from sharding import collectives, residual
from sharding.axes import Axes
from sharding.bounds import Count, NotNegative, Rate, Size, check_bounds

NORMED = ("head", "all")
"""What a norm of queries and keys is over."""

PREFIX = ("prefix_key", "prefix_value")


@dataclasses.dataclass(frozen=True)
class Attention(Layer):
    """Causal softmax attention: y = concat_h(softmax(q_h k_g^T scale) v_g) W_out.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2; grouped queries: Ainslie et al.
    2023 (arXiv 2305.13245). Its carry is the cache of keys and values. Heads are split over
    `tensor`, whole groups on each device; tokens over `seq` go round a ring (see
    `gam_jax.ops.ring_attention`).

    Attributes:
      width: D.
      heads: H, of queries.
      kv_heads: G, of keys and values; each serves H / G of the queries'. 0 for H.
      head_size: K, channels of a head; 0 for D / H.
      rotary: base of the rotary positions' wavelengths (see `gam_jax.ops.rotary`); 0 for none.
      positions: how those are stretched, and which channels they turn.
      context: tokens that the cache holds, and so the most that a sequence may have. It takes no
        memory in training. A window needs no such bound.
      window: a token sees that many last tokens, itself among them; 0 for all.
      soft_cap: scores become cap * tanh(score / cap); 0 for none.
      sinks: each head learns the score of one more key, of value 0.
      gated: whether each channel of the mixture is multiplied by a sigmoid of the token, before
        W_out (arXiv 2505.06708; Qwen3-Next).
      bias: whether queries, keys and values have one.
      out_bias: whether the output has one.
      qk_norm: RMS norm of queries and keys, before they are turned (Qwen3).
      qk_norm_over: "head", each head by itself; "all", all heads of a token together (OLMo 2).
      qk_norm_eps: added to the mean square of that norm.
      qk_norm_centred: whether its scales are 1 + the parameter, which begins as 0 (Gemma 3).
      scale: of the scores; 0 for 1 / sqrt(K).
      prefix: m, keys and values before the first that every query sees, outside any window and at
        no place of the sequence: a part of the carry that stays. They are 0 unless a start is
        learned, as the prefixes of the streams of a `ParScale` are.
      dropout: rate on the output in training.
      block_size: tokens of a block of queries, and of keys, in which scores are computed; 0 for
        what the machine and the window ask for. `gam tune` finds it. The kernels of a TPU take a
        multiple of 128 that divides the tokens; with another one, and on a GPU, kernels have
        blocks of their own.
    """

    width: Size | None = None
    heads: Size = 4
    kv_heads: Count = 0
    head_size: Count = 0
    rotary: NotNegative = 10_000.0
    positions: Positions = Positions()
    context: Size = 2048
    window: Count = 0
    soft_cap: NotNegative = 0.0
    sinks: bool = False
    gated: bool = False
    bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    qk_norm_over: str = "head"
    qk_norm_eps: NotNegative = 1e-6
    qk_norm_centred: bool = False
    scale: NotNegative = 0.0
    prefix: Count = 0
    dropout: Rate | None = None
    block_size: Count = 0

    computed: ClassVar[tuple[str, ...]] = ("block_size",)

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.qk_norm_over not in NORMED:
            raise ValueError(
                f"Attention.qk_norm_over '{self.qk_norm_over}' is not one of {', '.join(NORMED)}"
            )
        if self.heads % self.groups:
            raise ValueError(
                f"Attention.heads={self.heads} is not a multiple of kv_heads={self.kv_heads}"
            )
        if not self.head_size and self.width is not None and self.width % self.heads:
            raise ValueError(
                f"Attention.width={self.width} is not a multiple of heads={self.heads}: change "
                f"the one or the other, or give head_size"
            )
        if not self.rotary and self.positions != Positions():
            raise ValueError("Attention.positions stretch rotary positions, and rotary=0 has none")
        if self.rotary and (self.head_size or self.width):
            check_positions(self.positions, self.rotary, self.size, "Attention")

    @property
    def groups(self) -> int:
        """G."""
        return self.kv_heads or self.heads

    @property
    def size(self) -> int:
        """K."""
        return self.head_size or known(self.width, "width", self) // self.heads

    @property
    def cached(self) -> int:
        """Tokens that the cache holds."""
        return self.window - 1 if self.window else self.context

    @property
    def rule(self) -> Rule:
        """What a query makes of a key; narrow windows are computed in small blocks."""
        rule = causal_rule(self.scale or self.size**-0.5, self.window, self.soft_cap)
        return rule.in_blocks(self.block_size)

    @property
    def limit(self) -> int:
        """The context, unless there is a window."""
        return 0 if self.window else self.context

    def for_length(self, tokens: int) -> Attention:
        """With a cache in whole blocks for so many tokens, at most the context."""
        context = cache_size(tokens, self.context)
        return dataclasses.replace(super().for_length(tokens), context=context)

    def table(self) -> Table:
        """query [D, H, K], key and value [D, G, K], out [H, K, D], and what the fields ask for."""
        width, size = known(self.width, "width", self), self.size
        counts = {"query": self.heads, "key": self.groups, "value": self.groups}
        counts |= {"gate": self.heads} if self.gated else {}
        table: dict[str, Param] = {}
        for name, heads in counts.items():
            table[name] = Param((width, heads, size), ("embed", "heads", None), fan_in(width))
            if self.bias:
                bias = Param((heads, size), ("heads", None), fan_in(width), decay=False)
                table[f"{name}_bias"] = bias
        if self.qk_norm:
            start = zeros if self.qk_norm_centred else ones
            for name in ("query", "key"):
                own = Param((size,), (None,), start, decay=False)
                whole = Param((counts[name], size), ("heads", None), start, decay=False)
                table[f"{name}_norm"] = whole if self.qk_norm_over == "all" else own
        if self.sinks:
            table["sinks"] = Param((self.heads,), ("heads",), zeros, decay=False)
        inside = self.heads * size
        table["out"] = Param((self.heads, size, width), ("heads", None, "embed"), fan_in(inside))
        if self.out_bias:
            table["out_bias"] = Param((width,), ("embed",), fan_in(inside), decay=False)
        return table

    def unit_table(self) -> UnitTable:
        """groups, each of a key, a value and its queries; queries, of which groups stay equal."""
        served = self.heads // self.groups
        asking = ("query", "gate") if self.gated else ("query",)
        every = bool(self.qk_norm and self.qk_norm_over == "all")
        reason = "queries and keys are normed over all heads" if every else ""

        def heads(names: tuple[str, ...], per: int) -> tuple[Part, ...]:
            biases = [Part(f"{name}_bias", 0, per) for name in names if self.bias]
            return (*(Part(name, 1, per) for name in names), *biases)

        def queries(per: int) -> tuple[Part, ...]:
            sinks = (Part("sinks", 0, per),) if self.sinks else ()
            norm = (Part("query_norm", 0, per),) if every else ()
            return (*heads(asking, per), *sinks, *norm)

        keys = (*heads(("key", "value"), 1), *((Part("key_norm", 0),) if every else ()))
        reasons: Any = {"equal": reason, "unweighed": reason}
        outward = (Part("out", 2), *((Part("out_bias", 0),) if self.out_bias else ()))
        into = tuple(Part(name, 0) for name in (*asking, "key", "value"))
        return {
            "groups": Unit((*queries(served), *keys), (Part("out", 0, served),), **reasons),
            "queries": Unit(queries(1), (Part("out", 0),), within=self.groups, **reasons),
            WIDTH: Unit(outward, into, equal=ALL_CHANNELS),
        }

    def with_units(self, name: str, size: int) -> Attention:
        """With so many groups, queries in all, or channels; a head's size stays."""
        if name == "groups":
            heads, groups = size * (self.heads // self.groups), size if self.kv_heads else 0
            return dataclasses.replace(self, heads=heads, kv_heads=groups, head_size=self.size)
        if name == "queries":
            groups = self.groups
            return dataclasses.replace(self, heads=size, kv_heads=groups, head_size=self.size)
        held = dataclasses.replace(self, head_size=self.size)
        return super(Attention, held).with_units(name, size)

    def silent(self) -> tuple[str, ...]:
        """out, and its bias."""
        return ("out", "out_bias") if self.out_bias else ("out",)

    def carry_table(self, batch: int) -> Any:
        """key and value [B, G, S, K], keys as they are scored, and each row's position [B].

        Positions are counted in the document that goes on. The cache begins with it, but for a
        window, whose older keys the position hides. With a prefix, prefix_key and prefix_value
        [B, m, G, K].
        """
        tokens = None if self.window else "token"
        shape, axes = (batch, self.groups, self.cached, self.size), ("batch", "heads", tokens, None)
        cache = Param(shape, axes, zeros, cache=True)
        table = {"key": cache, "value": cache, "position": row_counter(batch)}
        if self.prefix:
            shape = (batch, self.prefix, self.groups, self.size)
            prefix = Param(shape, ("batch", None, "heads", None), zeros)
            table |= dict.fromkeys(PREFIX, prefix)
        return table

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
        seen = residual.enter_map(by_rows(self._projected), params, x, axes, "heads")
        batch, tokens = seen["query"].shape[:2]
        total = tokens * collectives.axis_size(axes.seq)
        position = jnp.zeros(batch, jnp.int32) if carry is None else carry["position"]
        spans = None if starts is None else spans_of(starts, position, axes.seq)
        limit = self.limit or None
        check_fits(position if spans is None else 0, total, limit, "Attention.context")
        if spans is None:
            first = 0 if carry is None else position[:, None]
            places = first + collectives.axis_index(axes.seq) * tokens + jnp.arange(tokens)
        else:
            places = spans.places
        held = None
        if carry is not None and carry["key"] is not None:
            held = carry["key"], carry["value"]
        end = known_most(position) + total
        positions = self.positions.reaching(end, whole=held is None and spans is None)
        q, k, v = self._heads(params, seen, places, positions, axes.of("heads"))
        prefix = self._prefix(carry, batch, axes)
        mixed, cache = attend_spans(
            self.rule,
            self.cached,
            q,
            k,
            v,
            held,
            position,
            axis=axes.seq,
            sinks=params.get("sinks"),
            shared=self._shared(prefix),
            spans=spans,
            backend=axes.backend,
        )
        after = {"key": cache[0], "value": cache[1], **prefix}
        after["position"] = position + total if spans is None else spans.after
        mixed = mixed.reshape(batch, tokens, -1)
        if self.gated:
            mixed = mixed * jax.nn.sigmoid(seen["gate"])
        y = residual.leave_map(by_rows(from_heads), params["out"], mixed, axes.of("heads"), axes)
        if self.out_bias:
            y = y + params["out_bias"]
        return dropout(y, self.dropout or 0.0, key, axes), after

    def _projected(self, params: Params, flat: Float[Array, "N D"]) -> dict[str, Array]:
        """The tokens through the maps to heads, each [N, H K]."""
        names = ("query", "key", "value", "gate") if self.gated else ("query", "key", "value")
        return {name: _projected(params, flat, name) for name in names}

    def _heads(
        self,
        params: Params,
        seen: dict[str, Array],
        places: Int[Array, "... T"],
        positions: Positions,
        axis: str | None,
    ) -> tuple[Array, Array, Array]:
        """Queries [B, T, H, K], keys and values [B, T, G, K], turned by their places."""
        found = []
        for name in ("query", "key", "value"):
            y = seen[name].reshape(*seen[name].shape[:2], -1, self.size)
            if self.qk_norm and name != "value":
                y = self._normed(y, params[f"{name}_norm"], axis)
            if self.rotary and name != "value":
                y = rotary(y, places, self.rotary, positions)
            found.append(y)
        return found[0], found[1], found[2]

    def _normed(self, x: Array, scale: Array, axis: str | None) -> Array:
        """Queries or keys; `axis` splits the heads."""
        scale = 1 + scale if self.qk_norm_centred else scale
        if self.qk_norm_over == "head":
            return rms_norm(x, scale, self.qk_norm_eps)
        flat = x.reshape(*x.shape[:2], -1)
        return rms_norm(flat, scale.reshape(-1), self.qk_norm_eps, axis).reshape(x.shape)

    def _prefix(self, carry: Any, batch: int, axes: Axes) -> dict[str, Array]:
        if not self.prefix:
            return {}
        carry = self.carry(batch, axes) if carry is None else carry
        return {name: carry[name] for name in PREFIX}

    def _shared(self, prefix: dict[str, Array]) -> Shared | None:
        """The prefix with heads first; None where there is none."""
        if not prefix:
            return None
        key, value = (jnp.swapaxes(prefix[name], 1, 2) for name in PREFIX)
        return key, value


def _projected(params: Params, flat: Array, name: str) -> Array:
    """The tokens [N, D] through one of the maps to heads, [N, H K]."""
    weight, bias = params[name], params.get(f"{name}_bias")
    bias = None if bias is None else bias.reshape(-1)
    return linear(flat, weight.reshape(weight.shape[0], -1), bias)


def check_positions(positions: Positions, theta: float, size: int, layer: str) -> None:
    """Raises a ValueError if a head of `size` channels cannot be turned so."""
    if size % 2 and not positions.turned:
        raise ValueError(f"{layer}: rotary positions need an even head, not {size}")
    positions.speeds(theta, size)
