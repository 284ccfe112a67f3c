"""Mixers around an associative memory that is written as the sequence is read."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, known, parted, row_counter
from gam_jax.layers.mamba import log_step_sizes
from gam_jax.ops import documents
from gam_jax.ops.cache import known_most
from gam_jax.ops.conv import causal_conv
from gam_jax.ops.linear import by_rows, linear, transposed_flat, with_linear_flat
from gam_jax.ops.norm import rms_norm, unit_norm
from gam_jax.ops.rotary import Positions, rotary
from gam_jax.ops.scan import memory_scan
from gam_jax.params import Initializer, Param, Params, Table, fan_in, ones, zeros
from gam_jax.units import ALL_CHANNELS, WIDTH, Part, Unit, UnitTable
from sharding import collectives, residual
from sharding.axes import Axes
from sharding.bounds import Count, NotNegative, Size, check_bounds

RANK = 16
"""Of GLA's map from a token to its decays."""

SLOWNESS = 16.0
"""GLA's decays are sigmoids to the power 1 / 16, so that they begin near 1."""

THETA = 10_000.0

SUM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What tells one linear memory from another.

    Attributes:
      rule: of the write, see `gam_jax.ops.scan`.
      decay: "none"; "fixed" for each head; from the token "head" and "channel_steps", exp(-a
        softplus), or "channel", a sigmoid.
      beta: whether the strength of a write comes from the token.
      feature: of queries and keys, see FEATURES.
      kernel: taps of the convolution on queries, keys and values; 1 for none.
      gate: of the output: "none"; "silu"; "low_rank", a sigmoid, through N channels.
      turned: whether queries and keys have rotary positions.
      keys, values: channels of all heads together, over D.
    """

    rule: str
    decay: str
    beta: bool
    feature: str
    kernel: int
    gate: str
    turned: bool
    keys: float
    values: float


RECIPES = {
    "linear": Recipe("hebb", "none", False, "elu", 1, "none", False, 1.0, 1.0),
    "retnet": Recipe("hebb", "fixed", False, "identity", 1, "silu", True, 1.0, 2.0),
    "gla": Recipe("hebb", "channel", False, "identity", 1, "silu", False, 0.5, 1.0),
    "deltanet": Recipe("delta", "none", True, "unit", 4, "none", False, 1.0, 1.0),
    "gated_deltanet": Recipe("delta", "head", True, "unit", 4, "silu", False, 0.75, 1.5),
    "kimi_delta": Recipe("delta", "channel_steps", True, "unit", 4, "low_rank", False, 1.0, 1.0),
}
"""Linear attention (arXiv 2006.16236), RetNet (2307.08621), GLA (2312.06635), DeltaNet
(2406.06484), Gated DeltaNet (2412.06464) and Kimi Delta Attention (2510.26692), each as its paper
has it."""

FEATURES = {
    "identity": lambda x: x,
    "elu": lambda x: jax.nn.elu(x) + 1,
    "relu": jax.nn.relu,
    "unit": unit_norm,
}
"""elu(x) + 1 and relu are positive: reads may be divided by the sum of their weights."""

POSITIVE = ("elu", "relu")


def _log_of_uniform(least: float) -> Initializer:
    """log a, a from U(least, 16)."""
    return lambda key, shape: jnp.log(jax.random.uniform(key, shape, jnp.float32, least, 16.0))


@dataclasses.dataclass(frozen=True)
class LinearMemory(Layer):
    """H memories, each a matrix S [K, N], written and read once a token, in time linear in T.

    (q, k, v) = x W_qkv, convolved and through silu where the kernel is over 1;
    S_t = transition_t S_{t-1} + beta_t k_t v_t^T (see `gam_jax.ops.scan.memory_scan`);
    y_t = S_t^T q_t / sqrt(K), each head RMS-normalised, gated by silu(x W_gate); then W_out.

    linear: no decay; with positive features, y_t is divided by q_t . sum of k instead of normed.
    retnet: decay 1 - 2^(-5-h); rotary positions (the paper: xPos).
    gla: decay sigmoid(x W W' + b)^(1/16) of each key channel.
    deltanet: delta rule, beta = sigmoid(x w).
    gated_deltanet: and a decay exp(-a softplus(x w' + b)) of each head.
    kimi_delta: and a decay exp(-a softplus(x W W' + b)) of each key channel, a that of the head;
    gated by sigmoid(x V V' + c). W and V have N columns.

    Attributes:
      width: D.
      heads: H, split over `tensor`.
      key_heads: G, of queries and keys; each serves H / G of the memories, whole groups on each
        device (Qwen3-Next). 0 for H.
      variant: one of RECIPES.
      key_width: K; 0 for the variant's share of D / G.
      value_width: N; 0 for the variant's share of D / H.
      kernel: taps of the convolution; 0 for the variant's.
      feature: one of FEATURES; "" for the variant's.
      gated: whether the output is gated; None for the variant's.
      gate_bias: whether a low-rank gate has one, c (flash-linear-attention; not Kimi Linear).
      positions: of variants with rotary positions: how those are stretched.
      negative: double the strength of writes, so that transitions have eigenvalues down to -1.
      eps: of the norm.
      chunk: of the scan.
      method: of the scan, see `gam_jax.ops.scan.memory_scan`; "pallas", a kernel for TPUs, has
        been compiled for them and not timed.
    """

    width: Size | None = None
    heads: Size = 4
    variant: str = "gated_deltanet"
    key_heads: Count = 0
    key_width: Count = 0
    value_width: Count = 0
    kernel: Count = 0
    feature: str = ""
    gated: bool | None = None
    gate_bias: bool = True
    positions: Positions = Positions()
    negative: bool = False
    eps: NotNegative = 1e-5
    chunk: Size = 64
    method: str = "chunked"

    computed: ClassVar[tuple[str, ...]] = ("method", "chunk")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.variant not in RECIPES:
            raise ValueError(
                f"LinearMemory.variant '{self.variant}' is not one of {', '.join(RECIPES)}"
            )
        if self.feature and self.feature not in FEATURES:
            raise ValueError(
                f"LinearMemory.feature '{self.feature}' is not one of {', '.join(FEATURES)}"
            )
        if self.heads % self.groups:
            raise ValueError(
                f"LinearMemory.heads={self.heads} is not a multiple of key_heads={self.key_heads}"
            )
        if self.width is not None and not (self.keys and self.values):
            raise ValueError(f"LinearMemory.heads={self.heads} are too many for {self.width}")
        if self.recipe.turned and self.width is not None and self.keys % 2:
            raise ValueError(f"LinearMemory: rotary positions need even keys, not {self.keys}")

    @property
    def recipe(self) -> Recipe:
        """The variant's, with what the fields change."""
        recipe = RECIPES[self.variant]
        kernel, feature = self.kernel or recipe.kernel, self.feature or recipe.feature
        gate = recipe.gate
        if self.gated is not None:
            gate = ("silu" if gate == "none" else gate) if self.gated else "none"
        return dataclasses.replace(recipe, kernel=kernel, feature=feature, gate=gate)

    @property
    def groups(self) -> int:
        """G."""
        return self.key_heads or self.heads

    @property
    def keys(self) -> int:
        """K."""
        share = self.recipe.keys * known(self.width, "width", self)
        return self.key_width or int(share) // self.groups

    @property
    def values(self) -> int:
        """N."""
        share = self.recipe.values * known(self.width, "width", self)
        return self.value_width or int(share) // self.heads

    @property
    def mixed(self) -> int:
        """Channels of a group's query, key and values."""
        return 2 * self.keys + self.heads // self.groups * self.values

    @property
    def decay_rank(self) -> int:
        """Channels that the map from a token to its decays goes through; 0 for no such map."""
        return {"channel": RANK, "channel_steps": self.values}.get(self.recipe.decay, 0)

    @property
    def averages(self) -> bool:
        """Whether reads are divided by the sum of their weights, a further column of the state."""
        return self.variant == "linear" and self.recipe.feature in POSITIVE

    def table(self) -> Table:
        """w_qkv [D, G, 2K + H N / G], w_out [D, H, N], and what the variant asks for."""
        width, heads, recipe = known(self.width, "width", self), self.heads, self.recipe
        groups, mixed, keys, values = self.groups, self.mixed, self.keys, self.values
        by_head = ("embed", "heads", None)
        table = {
            "w_qkv": Param((width, groups, mixed), by_head, fan_in(width)),
            "w_out": Param(
                (width, heads, values), by_head, fan_in(heads * values), transposed=True
            ),
        }
        if recipe.kernel > 1:
            shape, taps = (recipe.kernel, groups, mixed), fan_in(recipe.kernel)
            table["conv"] = Param(shape, (None, "heads", None), taps)
        if recipe.beta:
            table["w_beta"] = Param((width, heads), ("embed", "heads"), fan_in(width))
        if recipe.decay == "head":
            table["w_decay"] = Param((width, heads), ("embed", "heads"), fan_in(width))
            table["decay_bias"] = Param((heads,), ("heads",), log_step_sizes(), decay=False)
            table["a_log"] = Param((heads,), ("heads",), _log_of_uniform(0.01), decay=False)
        inner, bias = ("latent", "heads", None), ("heads", None)
        if rank := self.decay_rank:
            begin = log_step_sizes() if recipe.decay == "channel_steps" else fan_in(rank)
            table["w_decay_in"] = Param((width, rank), ("embed", None), fan_in(width))
            table["w_decay_out"] = Param((rank, heads, keys), inner, fan_in(rank))
            table["decay_bias"] = Param((heads, keys), bias, begin, decay=False)
        if recipe.decay == "channel_steps":
            table["a_log"] = Param((heads,), ("heads",), _log_of_uniform(1.0), decay=False)
        if not self.averages:
            table["norm"] = Param((values,), (None,), ones, decay=False)
        if recipe.gate == "silu":
            table["w_gate"] = Param((width, heads, values), by_head, fan_in(width))
        if recipe.gate == "low_rank":
            taken = fan_in(values)
            table["w_gate_in"] = Param((width, values), ("embed", None), fan_in(width))
            table["w_gate_out"] = Param((values, heads, values), inner, taken)
            if self.gate_bias:
                table["gate_bias"] = Param((heads, values), bias, taken, decay=False)
        return table

    def unit_table(self) -> UnitTable:
        """groups, each of a query, a key and the memories that they serve."""
        served, table = self.heads // self.groups, self.table()
        by_head = ("w_beta", "w_decay", "w_decay_out", "w_gate", "w_gate_out")
        places = dict.fromkeys(by_head, (1, served)) | {"w_qkv": (1, 1), "conv": (1, 1)}
        places |= dict.fromkeys(("decay_bias", "a_log", "gate_bias"), (0, served))
        made = tuple(Part(name, *places[name]) for name in places if name in table)
        names = ("w_qkv", "w_beta", "w_decay", "w_decay_in", "w_gate", "w_gate_in")
        into = tuple(Part(name, 0) for name in names if name in table)
        fixed = self.recipe.decay == "fixed"
        first = "the decay of a head is that of its number" if fixed else ""
        return {
            "groups": Unit(made, (Part("w_out", 1, served),), first=first),
            WIDTH: Unit((Part("w_out", 0),), into, equal=ALL_CHANNELS),
        }

    def with_units(self, name: str, size: int) -> LinearMemory:
        """With so many groups, or channels; keys and values of a head stay."""
        held = dataclasses.replace(self, key_width=self.keys, value_width=self.values)
        if name == "groups":
            heads, groups = size * (self.heads // self.groups), size if self.key_heads else 0
            return dataclasses.replace(held, heads=heads, key_heads=groups)
        return super(LinearMemory, held).with_units(name, size)

    def silent(self) -> tuple[str, ...]:
        """w_out."""
        return ("w_out",)

    def carry_table(self, batch: int) -> Any:
        """state [B, H, K, N]; conv, inputs before the next token; a position where keys turn."""
        recipe, columns = self.recipe, self.values + self.averages
        shape = (batch, self.heads, self.keys, columns)
        table = {"state": Param(shape, ("batch", "heads", None, None), zeros)}
        if recipe.kernel > 1:
            shape = (batch, recipe.kernel - 1, self.groups, self.mixed)
            table["conv"] = Param(shape, ("batch", None, "heads", None), zeros)
        if recipe.turned:
            table["position"] = row_counter(batch)
        return table

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Carry | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """Heads are split inside, and summed on the way out."""
        fresh = carry is None
        before, begin = parted(self.carry(x.shape[0], axes) if fresh else carry)
        x, mixed = residual.enter_map(by_rows(with_linear_flat), params["w_qkv"], x, axes, "heads")
        flat = x.reshape(-1, x.shape[-1])
        q, k, v, after = self._written(params, mixed, before, begin, fresh, axes, starts)
        beta, log_decay = None, self._log_decay(params, flat, axes)
        if self.recipe.beta:
            beta = jax.nn.sigmoid(linear(flat, params["w_beta"]).astype(jnp.float32))
            beta = (2 * beta if self.negative else beta).reshape(*x.shape[:2], -1)
        if log_decay is not None:
            log_decay = log_decay.reshape(*x.shape[:2], *log_decay.shape[1:])
        y, after["state"] = memory_scan(
            q,
            k,
            v,
            log_decay=log_decay,
            beta=beta,
            rule=self.recipe.rule,
            state=before["state"],
            method=self.method,
            chunk=self.chunk,
            axis=axes.seq,
            starts=starts,
            begin=begin["state"],
            backend=axes.backend,
        )
        if self.averages:
            y = y[..., :-1] / (y[..., -1:] + SUM_EPS)
        else:
            y = rms_norm(y, params["norm"], self.eps)
        y = self._gated(params, flat, y.reshape(flat.shape[0], -1)).reshape(*x.shape[:2], -1)
        outward, w_out = by_rows(transposed_flat), params["w_out"]
        return residual.leave_map(outward, w_out, y, axes.of("heads"), axes), after

    def _written(
        self,
        params: Params,
        mixed: Array,
        carry: Carry,
        begin: Any,
        fresh: bool,
        axes: Axes,
        starts: Array | None,
    ) -> tuple[Array, Array, Array, dict[str, Array]]:
        """Queries and keys [B, T, G, K], values [B, T, H, N (+ 1)], and carries but the state.

        `mixed` is [B, T, G C], what the map to all of them made of the tokens.
        Where `fresh`, the carry is that of the start of a sequence; documents start with `begin`.
        """
        recipe, w_qkv, shape = self.recipe, params["w_qkv"], mixed.shape[:2]
        after: dict[str, Array] = {}
        if recipe.kernel > 1:
            taps, tail = params["conv"], carry["conv"]
            filters = taps.reshape(taps.shape[0], -1)
            before, anew = jax.tree.map(
                lambda part: part.reshape(*part.shape[:2], -1), (tail, begin["conv"])
            )
            mixed, last = causal_conv(
                mixed, filters, state=before, axis=axes.seq, starts=starts, begin=anew
            )
            mixed = jax.nn.silu(mixed)
            after["conv"] = last.reshape(tail.shape)
        mixed = mixed.reshape(*shape, *w_qkv.shape[1:])
        q, k, v = jnp.split(mixed, (self.keys, 2 * self.keys), axis=3)
        v = v.reshape(*shape, -1, self.values)
        q, k = (FEATURES[recipe.feature](part) for part in (q, k))
        if recipe.turned:
            seen, tokens = carry["position"], shape[1]
            places, after["position"] = _places(seen, fresh, tokens, axes.seq, starts)
            end = known_most(seen) + tokens * collectives.axis_size(axes.seq)
            positions = self.positions.reaching(end, whole=fresh and starts is None)
            q, k = (rotary(part, places, THETA, positions) for part in (q, k))
        if self.averages:
            v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=3)
        return q * self.keys**-0.5, k, v, after

    def _gated(self, params: Params, flat: Array, y: Array) -> Array:
        """The heads' reads [N, H N] times the gates of their tokens."""
        if self.recipe.gate == "silu":
            weight = params["w_gate"]
            return y * jax.nn.silu(linear(flat, weight.reshape(weight.shape[0], -1)))
        if self.recipe.gate == "low_rank":
            low, out = linear(flat, params["w_gate_in"]), params["w_gate_out"]
            bias = params["gate_bias"].reshape(-1) if self.gate_bias else None
            return y * jax.nn.sigmoid(linear(low, out.reshape(out.shape[0], -1), bias))
        return y

    def _log_decay(self, params: Params, flat: Array, axes: Axes) -> Array | None:
        """[N, H] or [N, H, K] in float32; None for no decay."""
        kind, heads = self.recipe.decay, params["w_out"].shape[1]
        if kind == "fixed":
            first = collectives.axis_index(axes.of("heads")) * heads
            order = (first + jnp.arange(heads)).astype(jnp.float32)
            return jnp.broadcast_to(jnp.log1p(-jnp.exp2(-5 - order)), (flat.shape[0], heads))
        if kind == "head":
            step = linear(flat, params["w_decay"]).astype(jnp.float32) + params["decay_bias"]
            return -jnp.exp(params["a_log"].astype(jnp.float32)) * jax.nn.softplus(step)
        if kind == "none":
            return None
        low, out = linear(flat, params["w_decay_in"]), params["w_decay_out"]
        logits = linear(low, out.reshape(out.shape[0], -1)).astype(jnp.float32)
        logits = logits.reshape(-1, *out.shape[1:]) + params["decay_bias"]
        if kind == "channel":
            return jax.nn.log_sigmoid(logits) / SLOWNESS
        rate = jnp.exp(params["a_log"].astype(jnp.float32))[:, None]
        return -rate * jax.nn.softplus(logits)


def _places(
    before: Array, fresh: bool, tokens: int, axis: str | None, starts: Array | None
) -> tuple[Array, Array]:
    """The places of this device's tokens, [T] or [B, T], and how many the document has by now."""
    if starts is not None:
        return documents.places(starts, before, axis)
    own = collectives.axis_index(axis) * tokens + jnp.arange(tokens)
    return own if fresh else before[:, None] + own, before + tokens * collectives.axis_size(axis)
