"""Mixtures of experts: many feed-forwards, of which each token goes through a few."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gam_jax.layers.base import WHOLE, Layer, Statistics, inherit, known
from gam_jax.layers.mlp import MLP
from gam_jax.ops import dispatch, grouped, routing
from gam_jax.ops.counted import counted
from gam_jax.ops.dropout import draw, dropout
from gam_jax.ops.linear import linear
from gam_jax.params import Param, Params, Table, fan_in, names_of, normal, stack, zeros
from gam_jax.units import ALL_CHANNELS, WIDTH, Part, Unit, UnitTable, joined, within
from sharding import collectives, residual
from sharding.axes import Axes
from sharding.bounds import Count, Rate, Size, check_bounds


class Routed(Statistics, flax.struct.PyTreeNode):
    """Sums over the tokens of each sequence so far.

    Attributes:
      counts: [B, E], how many tokens chose each expert.
      mass: [B, E], their probabilities.
      tokens: [B].
      square: [B], squares of the logits' logsumexp.
      dropped: [B], choices that an expert had no room for.
      entropy: [B], of the probabilities.
      router: what the penalty is by.
    """

    counts: Array
    mass: Array
    tokens: Array
    square: Array
    dropped: Array
    entropy: Array
    router: routing.Router = flax.struct.field(pytree_node=False)

    def report(self, axes: Axes) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The router's losses, added up over layers, and its measures, layer by layer.

        Shares are those of the whole batch before they are multiplied, unless the router says
        otherwise. Measures: load [..., E], each expert's share of all choices; dropped, a share
        of them; router_entropy in nats.
        """
        router = self.router
        found = {
            "counts": self.counts,
            "mass": self.mass,
            "sequences": jnp.ones_like(self.tokens),
            "of_sequences": routing.balance_loss(self.counts, self.mass),
            **{name: getattr(self, name) for name in ("tokens", "square", "dropped", "entropy")},
        }
        wide = {name: x if x.ndim > self.tokens.ndim else x[..., None] for name, x in found.items()}
        sums = {name: jnp.sum(x, axis=-2) for name, x in wide.items()}
        total = _in_one_message(sums, axes.sequences)
        one = {name: x[..., 0] for name, x in total.items() if name not in ("counts", "mass")}
        counts, mass = total["counts"], total["mass"]
        if router.balance_over == "sequence":
            balance = one["of_sequences"] / one["sequences"]
        elif router.balance_over == "layers":
            pooled = (jnp.sum(x.reshape(-1, x.shape[-1]), axis=0) for x in (counts, mass))
            balance = routing.balance_loss(*pooled)
        else:
            balance = routing.balance_loss(counts, mass)
        penalty = router.balance * jnp.sum(balance)
        penalty = penalty + router.z * jnp.sum(one["square"] / one["tokens"])
        choices = jnp.sum(counts, axis=-1)
        return penalty, {
            "load": counts / choices[..., None],
            "dropped": one["dropped"] / choices,
            "router_entropy": one["entropy"] / one["tokens"],
        }


def _in_one_message(
    arrays: dict[str, Array], axes: str | tuple[str, ...] | None
) -> dict[str, Array]:
    """Each summed over mesh axes; they have all dimensions but the last alike."""
    total = collectives.psum(jnp.concatenate(list(arrays.values()), axis=-1), axes)
    ends = itertools.accumulate(x.shape[-1] for x in arrays.values())
    return dict(zip(arrays, jnp.split(total, list(ends)[:-1], axis=-1), strict=True))


@dataclasses.dataclass(frozen=True)
class MoE(Layer):
    """sum over chosen experts i of w_i FFN_i(x), plus a shared feed-forward that all tokens take.

    The router, always in float32, scores x W_r; see `gam_jax.ops.routing` for how experts are
    chosen and weighted, and `gam_jax.ops.grouped` for how only chosen ones are computed.

    Attributes:
      experts: E, how many there are.
      chosen: K, experts of a token.
      ffn: what each expert is; its dropout is on the sum.
      shared: the shared feed-forward has as many hidden units as that many experts.
      shared_hidden: its hidden units, where they are another number; 0 for those of `shared`.
      shared_gate: whether it is multiplied by sigmoid(x w) (Qwen2-MoE, Qwen3-Next).
      router: how experts are chosen, and balanced in training.
      capacity: how many tokens an expert takes.
      width, dropout: as in `MLP`.
      strategy: how tokens meet experts on other devices, see `gam_jax.ops.dispatch`: "gather",
        "exchange" (dropless where there is no capacity), or "auto", what sends less.
      method: of the grouped products, see `gam_jax.ops.grouped.make_groups`.
    """

    experts: Size = 8
    chosen: Size = 2
    ffn: MLP = MLP(activation="swiglu", bias=False)
    shared: Count = 0
    shared_hidden: Count = 0
    shared_gate: bool = False
    router: routing.Router = routing.Router()
    capacity: routing.Capacity = routing.Capacity()
    width: Size | None = None
    dropout: Rate | None = None
    strategy: str = "auto"
    method: str = "auto"

    computed: ClassVar[tuple[str, ...]] = ("method", "strategy")

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.chosen > self.experts:
            raise ValueError(f"MoE.chosen={self.chosen} is not from 1 to experts={self.experts}")
        if self.experts % self.router.groups:
            raise ValueError(
                f"MoE.experts={self.experts} do not make router.groups={self.router.groups} groups"
            )
        if self.router.chosen_groups * (self.experts // self.router.groups) < self.chosen and (
            self.router.chosen_groups
        ):
            raise ValueError(
                f"MoE.chosen={self.chosen} are more than the experts of "
                f"router.chosen_groups={self.router.chosen_groups} groups"
            )
        if self.strategy not in dispatch.STRATEGIES:
            valid = ", ".join(dispatch.STRATEGIES)
            raise ValueError(f"MoE.strategy '{self.strategy}' is not one of {valid}")
        if not self.shared and (self.shared_hidden or self.shared_gate):
            raise ValueError("MoE.shared_hidden and shared_gate are of a shared feed-forward")
        if self._by_expert and (self.capacity.factor or self.router.bias_step):
            raise ValueError(
                "MoE.router.by='expert' is in balance and drops none by design: leave out "
                "capacity.factor and router.bias_step"
            )
        inner = inherit(self.ffn, width=self.width, dropout=0.0)
        object.__setattr__(self, "ffn", inner)

    @property
    def causal(self) -> bool:
        """Whether no token's experts depend on later tokens.

        They do where experts choose tokens from the whole sequence, and where the first choices of
        later tokens take an expert's places before the second choices of earlier ones.
        """
        return not self._by_expert and not (self.capacity.factor and self._by_choice)

    @property
    def documents(self) -> bool:
        """Whether no token's experts depend on other tokens: without room that all compete for."""
        return not self._by_expert and not self.capacity.factor

    @property
    def _by_expert(self) -> bool:
        return self.router.by == "expert"

    @property
    def _by_choice(self) -> bool:
        return self.capacity.first == "choices"

    @property
    def shared_ffn(self) -> MLP:
        """The shared feed-forward."""
        hidden = self.ffn.hidden or self.ffn.expansion * known(self.width, "width", self)
        return dataclasses.replace(self.ffn, hidden=self.shared_hidden or self.shared * hidden)

    def table(self) -> Table:
        """router [D, E] (bias [E], balance_bias [E]); experts: those of ffn, [E, ...]; shared.

        shared_gate [D], where there is one.
        """
        width = known(self.width, "width", self)
        start = normal((0.1 / width) ** 0.5)  # small: Switch, section 2.4
        shape, axes = (width, self.experts), ("embed", None)
        table: dict[str, Any] = {
            "router": Param(shape, axes, start, precise=True),
            "experts": stack(self.ffn.table(), self.experts, "expert"),
        }
        vector = Param((self.experts,), (None,), zeros, decay=False, precise=True)
        if self.router.bias:
            table["router_bias"] = vector
        if self.router.bias_step:
            step = self.router.bias_step
            table["balance_bias"] = dataclasses.replace(vector, sign_step=step)
        if self.shared:
            table["shared"] = self.shared_ffn.table()
        if self.shared_gate:
            table["shared_gate"] = Param((width,), ("embed",), fan_in(width))
        return table

    def unit_table(self) -> UnitTable:
        """experts, of which `chosen` grow alike; hidden units of each, and of the shared one."""
        experts = (Part(f"experts/{name}", 0) for name in names_of(self.ffn.table()))
        vectors = [
            Part(name, 0) for name in ("router_bias", "balance_bias") if name in self.table()
        ]
        found = {
            "experts": Unit(
                (*experts, Part("router", 1), *vectors),
                equal="a token goes to its best experts",
                fixed=self._uncopied,
                unweighed="a token goes to its best experts",
                alike=self.chosen,
                alike_name="chosen",
            )
        }
        wide = [{WIDTH: Unit((), (Part("router", 0),), equal=ALL_CHANNELS)}]
        inner = within("experts", 1, self.ffn.unit_table(), "")
        found["hidden"], wide = inner["hidden"], [*wide, {WIDTH: inner[WIDTH]}]
        if self.shared:
            shared = within("shared", 0, self.shared_ffn.unit_table(), "")
            found["shared"], wide = shared["hidden"], [*wide, {WIDTH: shared[WIDTH]}]
        if self.shared_gate:
            wide.append({WIDTH: Unit((), (Part("shared_gate", 0),), equal=ALL_CHANNELS)})
        return found | joined(*wide)

    @property
    def _uncopied(self) -> str:
        """Why experts cannot be copied; empty where they can."""
        router = self.router
        if self._by_expert or self.capacity.factor:
            return "each takes so many tokens alone"
        if router.chosen_groups not in (0, router.groups):
            return "a token chooses among the experts of its best groups"
        if router.bias_step and router.score == "softmax":
            return "their balance is beside probabilities, which copies share"
        if router.score == "sigmoid" and not router.renormalise:
            return "the scores of a token's experts are added up"
        return ""

    def with_units(self, name: str, size: int) -> MoE:
        """With so many experts (and as many more chosen), hidden units, or channels."""
        shared = self.shared_ffn.size if self.shared else 0
        if name == "experts":
            chosen = max(self.chosen * size // self.experts, 1)
            return dataclasses.replace(self, experts=size, chosen=chosen)
        if name == "hidden":
            ffn = self.ffn.with_units("hidden", size)
            return dataclasses.replace(self, ffn=ffn, shared_hidden=shared)
        if name == "shared":
            return dataclasses.replace(self, shared_hidden=size)
        return dataclasses.replace(super().with_units(name, size), shared_hidden=shared)

    def silent(self) -> tuple[str, ...]:
        """That of all feed-forwards."""
        shared = [f"shared/{name}" for name in self.ffn.silent()] if self.shared else []
        return (*(f"experts/{name}" for name in self.ffn.silent()), *shared)

    def carry_table(self, batch: int) -> Any:
        """routed: sums for losses and measures; filled: what is taken of a span, with capacity."""
        if not self.causal:
            return ()
        one = Param((batch,), ("batch",), zeros)
        each = Param((batch, self.experts), ("batch", None), zeros)
        sums: list[Any] = [each, each, one, one, one, one]
        table: dict[str, Any] = {"routed": Routed(*sums, router=self.router)}
        if self.capacity.factor and self.capacity.tokens:
            integers: list[Any] = [dataclasses.replace(p, dtype="int32") for p in (one, each)]
            table["filled"] = routing.Filled(*integers)
        return table

    def experts_apart(self, params: Params, take: Callable[[Any, int], Any]) -> Params:
        """Those of its own, if they are few."""
        if self.experts > grouped.FEW:
            return params
        experts = {
            name: tuple(take(x, i) for i in range(self.experts)) if name.startswith("w_") else x
            for name, x in params["experts"].items()
        }
        return {**params, "experts": experts}

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
        """Hidden units are split over `ffn`'s axis, as in `MLP`; experts over `expert`'s."""
        keys = (None, None) if key is None else jax.random.split(key)
        begins = carry is None
        carry = self.carry(x.shape[0], axes) if carry is None else carry
        logits = self._logits(params, x, axes, keys[0])
        choice, kept, carry = self._routed(params, logits, carry, axes)
        if self.router.bias_step:
            load = jnp.sum(choice.hot, axis=(0, 1, 2))
            deviation = load - jnp.mean(load)
            x = counted(x, params["balance_bias"], deviation)
        x = residual.enter(x, axes, "ffn")
        flat = x.reshape(-1, x.shape[-1])
        chosen = choice.experts.shape[-1]
        experts = jnp.where(kept, choice.experts, self.experts).reshape(-1, chosen)
        weights = jnp.where(kept, choice.weights, 0).reshape(-1, chosen)
        room = self.room(x.shape[0], x.shape[1], begins)
        if ffn := axes.of("ffn"):  # here, so that gradients of parts are summed at home
            weights = collectives.as_varying(weights, ffn)
        partial = self.through_chosen(params["experts"], flat, experts, weights, axes, room)
        if self.shared:
            partial = partial + self._shared(params, flat, axes)
        out = residual.leave_sum(partial.reshape(x.shape), axes.of("ffn"), axes)
        if self.shared and self.ffn.bias and not self.shared_gate:
            out = out + self.ffn.scaled_bias(params["shared"])
        return dropout(out, self.dropout or 0.0, keys[1], axes), carry

    def _shared(self, params: Params, x: Float[Array, "N D"], axes: Axes) -> Float[Array, "N D"]:
        """What this device's hidden units of the shared feed-forward add."""
        partial = self.shared_ffn.partial(params["shared"], x)
        if not self.shared_gate:
            return partial
        if self.ffn.bias:
            partial = partial + _own_part(self.ffn.scaled_bias(params["shared"]), axes)
        return partial * jax.nn.sigmoid(linear(x, params["shared_gate"][:, None]))

    def _logits(
        self, params: Params, x: Array, axes: Axes, key: Array | None
    ) -> Float[Array, "B T E"]:
        """Each device scores its own tokens of the stream; all scores are then known to all."""
        x = x.astype(jnp.float32)
        if key is not None and self.router.jitter:
            spread = 2 * draw(x.shape, key, axes) - 1
            x = x * (1 + self.router.jitter * spread)
        logits = jnp.einsum("btd,de->bte", x, params["router"].astype(jnp.float32))
        if self.router.bias:
            logits = logits + params["router_bias"].astype(jnp.float32)
        return collectives.all_gather(logits, axes.residual, dim=1)

    def _routed(
        self, params: Params, logits: Array, carry: Any, axes: Axes
    ) -> tuple[routing.Choice, Bool[Array, "B T K"], Any]:
        """Who goes where, which choices there is room for, and the carry after."""
        if self._by_expert:
            every = collectives.all_gather(logits, axes.seq, dim=1)
            choice, kept = routing.choose_tokens(self.router, self.chosen, every)
            own = lambda x: collectives.own_shard(x, axes.seq, dim=1)  # noqa: E731
            return routing.Choice(*map(own, choice)), own(kept), ()
        bias = params.get("balance_bias")
        bias = None if bias is None else bias.astype(jnp.float32)
        choice = routing.choose(self.router, self.chosen, logits, bias)
        kept, filled = self._room(choice, carry, axes)
        if not self.causal:
            return choice, kept, ()
        own = {
            "counts": jnp.sum(choice.hot, axis=(1, 2)),
            "mass": jnp.sum(choice.probabilities, axis=1),
            "tokens": jnp.full(logits.shape[0], float(logits.shape[1])),
            "square": jnp.sum(jnp.square(jax.nn.logsumexp(logits, axis=-1)), axis=1),
            "dropped": jnp.sum(1.0 - kept, axis=(1, 2)),
            "entropy": jnp.sum(routing.entropy(choice.probabilities), axis=1),
        }
        after = {"routed": _add(carry["routed"], own, axes.seq)}
        return choice, kept, after | ({} if filled is None else {"filled": filled})

    def _room(
        self, choice: routing.Choice, carry: Any, axes: Axes
    ) -> tuple[Bool[Array, "B T K"], routing.Filled | None]:
        """Which choices their experts have room for."""
        capacity, hot = self.capacity, choice.hot
        if not capacity.factor:
            return jnp.ones(choice.experts.shape, bool), None
        room = capacity.room(self.chosen, self.experts, hot.shape[0] * hot.shape[1])
        if capacity.tokens and not self._by_choice:
            place, filled = routing.positions(hot, capacity.tokens, carry["filled"], axes.seq)
            return place < room, filled
        if capacity.tokens:
            return routing.positions_by_choice(hot, capacity.tokens, axes.seq) < room, None
        return routing.positions_on_device(hot, self._by_choice) < room, None

    def through_chosen(
        self,
        params: Params,
        x: Float[Array, "N D"],
        experts: Int[Array, "N K"],
        weights: Float[Array, "N K"],
        axes: Axes,
        room: int,
    ) -> Float[Array, "N D"]:
        """What this device's hidden units of the chosen experts add.

        Args:
          params: of the experts, see `table`.
          x: tokens.
          experts: those that each has chosen; E stands for none.
          weights: of these choices.
          axes: mesh axes.
          room: see `room`.
        """

        def run(x: Array, owner: Array, weights: Array, most: int) -> Array:
            own = grouped.count(params["w_in"])
            groups = grouped.make_groups(
                owner.reshape(-1), own, most, self.method, backend=axes.backend
            )
            place = groups.place.reshape(owner.shape)
            rows = grouped.spread(x, groups.source, place)
            rows = self._through_experts(params, rows, groups, axes)
            return grouped.collect(rows, weights, groups.source, place)

        axis = axes.of("expert")
        if axis is None or axes.expert is None:
            return dispatch.on_alike(run, x, experts, weights, self.experts, axis)
        devices = collectives.axis_size(axis)
        way = dispatch.cheapest(self.strategy, x.shape[0], self.experts, room, devices)
        if way == "gather":
            return dispatch.by_gathering(run, x, experts, weights, self.experts, axis)
        return dispatch.by_exchange(run, x, experts, weights, self.experts, axis, room)

    def room(self, rows: int, tokens: int, begins: bool = True) -> int:
        """The most tokens that an expert can take of those that one device holds.

        Args:
          rows: sequences that the device holds.
          tokens: tokens of each of them that it holds.
          begins: whether the sequence begins here, or at a multiple of `tokens` before.
        """
        if self._by_expert:
            return rows * tokens
        return self.capacity.most(self.chosen, self.experts, rows, tokens, begins)

    def _through_experts(
        self, params: Params, rows: Float[Array, "M D"], groups: grouped.Groups, axes: Axes
    ) -> Float[Array, "M D"]:
        names = self.ffn.inward
        biases = [params[f"b_{name}"] for name in names] if self.ffn.bias else []
        weights = [params[f"w_{name}"] for name in names]
        out = grouped.grouped_feed_forward(
            groups, rows, weights, biases, params["w_out"], self.ffn.activated
        )
        out = out if self.ffn.out_scale == 1 else self.ffn.out_scale * out
        if not self.ffn.bias:
            return out
        return out + grouped.row_bias(groups, _own_part(self.ffn.scaled_bias(params), axes))


def _own_part(bias: Array, axes: Axes) -> Array:
    """Each part of the hidden units adds its part of the output's bias."""
    if ffn := axes.of("ffn"):
        return collectives.as_varying(bias, ffn) / collectives.axis_size(ffn)
    return bias


def _add(before: Routed, own: dict[str, Array], axis: str | None) -> Routed:
    """The sums after these tokens: those of all shards together."""
    wide = {name: x.reshape(x.shape[0], -1) for name, x in own.items()}
    total = _in_one_message(wide, axis)
    sums = {name: getattr(before, name) + total[name].reshape(x.shape) for name, x in own.items()}
    return before.replace(**sums)
