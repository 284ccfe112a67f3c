"""Which experts a token goes to, and with what weight. All in float32; choices have no gradient.

Sources: GShard (arXiv 2006.16668), Switch (2101.03961), Mixtral (2401.04088), DeepSeek-V3
(2412.19437, section 2.1.2), expert choice (2202.09368).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from sharding import collectives
from sharding.bounds import Count, NotNegative, Positive, Rate, Size, check_bounds

SCORES = ("softmax", "sigmoid")
CHOOSERS = ("token", "expert")
OVER = ("batch", "sequence", "layers")


@dataclasses.dataclass(frozen=True)
class Router:
    """How experts are chosen and kept in balance.

    Switch: renormalise=False, one expert. Mixtral, Qwen3: the default. gpt-oss: bias=True (softmax
    over the chosen logits is what renormalised softmax is). DeepSeek-V3: score="sigmoid",
    scale=2.5, groups=8, chosen_groups=4, bias_step=1e-3, balance=1e-4, balance_over="sequence".

    Attributes:
      score: of a logit: "softmax" over all experts, or "sigmoid" of each.
      renormalise: whether the weights of a token's experts are made to sum to 1.
      scale: constant on the weights.
      groups: consecutive experts are taken as that many equal groups ...
      chosen_groups: ... and a token chooses among the experts of the best few groups alone; 0 for
        all groups.
      group_best: a group is as good as the sum of its so many best scores: 2 of DeepSeek-V3, 1 of
        DeepSeek-V2 (arXiv 2405.04434, section 2.2.2).
      by: "token": each token takes its best experts. "expert": each expert takes its best tokens
        of a sequence, in perfect balance; later tokens take part in what is decided for earlier
        ones, so it is not causal.
      bias: whether logits have a learned bias.
      jitter: in training, logits are of inputs times U(1 - jitter, 1 + jitter).
      balance: coefficient of the balance loss, `balance_loss`; 0 for none.
      balance_over: where its shares are taken before they are multiplied: over the whole "batch",
        layer by layer; over each "sequence", layer by layer; or over batch and "layers" at once.
      z: coefficient of the mean square of the logits' logsumexp (ST-MoE, arXiv 2202.08906).
      bias_step: step of the balance bias after each update, against the sign of its expert's
        load above the mean; 0 for none. The bias counts in choosing alone, never in weights
        (loss-free balancing, arXiv 2408.15664).
    """

    score: str = "softmax"
    renormalise: bool = True
    scale: Positive = 1.0
    groups: Size = 1
    chosen_groups: Count = 0
    group_best: Size = 2
    by: str = "token"
    bias: bool = False
    jitter: Rate = 0.0
    balance: NotNegative = 0.01
    balance_over: str = "batch"
    z: NotNegative = 0.001
    bias_step: NotNegative = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)
        for name, valid in (("score", SCORES), ("by", CHOOSERS), ("balance_over", OVER)):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"Router.{name} '{getattr(self, name)}' is not one of {', '.join(valid)}"
                )
        if self.chosen_groups > self.groups:
            raise ValueError("Router.chosen_groups must be from 0 (all) to groups, at least 1")


class Choice(NamedTuple):
    """What is chosen for each token.

    Attributes:
      experts: [..., K], int32, the best first.
      weights: [..., K], float32.
      hot: [..., K, E], 1 where the k-th chosen is that expert.
      probabilities: [..., E], scores that sum to 1.
    """

    experts: Array
    weights: Array
    hot: Array
    probabilities: Array


def choose(
    router: Router, chosen: int, logits: Float[Array, "... E"], bias: Float[Array, E] | None = None
) -> Choice:
    """Each token's best experts; of equal scores the first.

    Args:
      router: how experts are chosen and weighted.
      chosen: K, experts of a token.
      logits: the router's output for each expert.
      bias: added to the scores when experts are chosen, and not to their weights.
    """
    scores = _scores(router, logits)
    ranked = lax.stop_gradient(scores if bias is None else scores + bias)
    _, experts = lax.top_k(_in_best_groups(router, ranked), chosen)
    hot = jax.nn.one_hot(experts, logits.shape[-1])
    weights = jnp.einsum("...ke,...e->...k", hot, scores)
    if router.renormalise:
        weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
    return Choice(experts, router.scale * weights, hot, _probabilities(router, scores))


def _scores(router: Router, logits: Array) -> Array:
    return jax.nn.softmax(logits) if router.score == "softmax" else jax.nn.sigmoid(logits)


def _probabilities(router: Router, scores: Array) -> Array:
    if router.score == "softmax":
        return scores
    return scores / (jnp.sum(scores, axis=-1, keepdims=True) + 1e-20)


def _in_best_groups(router: Router, scores: Array) -> Array:
    """-inf for experts outside of the best groups."""
    if router.chosen_groups in (0, router.groups):
        return scores
    grouped = scores.reshape(*scores.shape[:-1], router.groups, -1)
    best, _ = lax.top_k(grouped, min(router.group_best, grouped.shape[-1]))
    _, groups = lax.top_k(jnp.sum(best, axis=-1), router.chosen_groups)
    kept = jnp.any(jax.nn.one_hot(groups, router.groups, dtype=bool), axis=-2)
    return jnp.where(kept[..., None], grouped, -jnp.inf).reshape(scores.shape)


def choose_tokens(
    router: Router, chosen: int, logits: Float[Array, "B T E"]
) -> tuple[Choice, Bool[Array, "B T E"]]:
    """Each expert's best tokens of each sequence: ceil(T chosen / E) of them.

    Returns:
      A choice of all experts by each token, and which of them are kept: none, some or all.
    """
    _, tokens, experts = logits.shape
    scores = _scores(router, logits)
    taken = min(math.ceil(tokens * chosen / experts), tokens)
    _, places = lax.top_k(jnp.swapaxes(lax.stop_gradient(scores), 1, 2), taken)
    kept = jnp.any(jax.nn.one_hot(places, tokens, dtype=bool), axis=2)
    kept = jnp.swapaxes(kept, 1, 2)
    every = jnp.broadcast_to(jnp.arange(experts, dtype=jnp.int32), logits.shape)
    hot = jnp.broadcast_to(jnp.eye(experts), (*logits.shape, experts))
    choice = Choice(every, router.scale * scores, hot, _probabilities(router, scores))
    return choice, kept


@dataclasses.dataclass(frozen=True)
class Capacity:
    """How many tokens an expert takes: ceil(factor * K * tokens / E) of each span.

    A token that comes when its expert is full is dropped: the residual stream alone carries it on.

    Attributes:
      factor: room, in units of an even share; 0 for no limit (dropless).
      tokens: of a span. Spans of a sequence begin at its multiples, so a longer sequence, read in
        chunks or split over devices, drops the same tokens. 0: all that a device holds at once is
        one span, sequences too; what is dropped then depends on the mesh.
      first: who is served first. "tokens": in the order of the sequence, so that none depends on
        what comes later. "choices": all first choices of a span, then all second ones (GShard,
        ST-MoE), which is not causal.
    """

    factor: NotNegative = 0.0
    tokens: Count = 256
    first: str = "tokens"

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.first not in ("tokens", "choices"):
            raise ValueError(f"Capacity.first '{self.first}' is neither tokens nor choices")

    def room(self, chosen: int, experts: int, tokens: int = 0) -> int:
        """How many tokens of a span an expert takes.

        Args:
          chosen: K, experts of a token.
          experts: E.
          tokens: the length of a span where the capacity has none of its own (`self.tokens` is
            0): all tokens that a device holds.
        """
        return math.ceil(self.factor * chosen * (self.tokens or tokens) / experts)

    def most(self, chosen: int, experts: int, rows: int, tokens: int, begins: bool = False) -> int:
        """The most tokens that an expert can take of so many, however they are routed.

        Args:
          chosen: K, experts of a token.
          experts: E.
          rows: sequences.
          tokens: tokens of each.
          begins: whether they are known to begin at a multiple of `tokens` in their sequence; then
            they cut no span in two, and the bound is lower.
        """
        if not self.factor:
            return rows * tokens
        if not self.tokens:
            return min(self.room(chosen, experts, rows * tokens), rows * tokens)
        spans = 1 + -(-(tokens - 1) // self.tokens)  # cut at both ends
        if begins and tokens % self.tokens == 0:
            spans = tokens // self.tokens
        elif begins and self.tokens % tokens == 0:
            spans = 1
        return rows * min(spans * self.room(chosen, experts), tokens)


class Filled(NamedTuple):
    """How full each expert is in the span of tokens that has begun and not ended.

    Attributes:
      seen: [B], int32, tokens of the sequence so far.
      counts: [B, E], int32, choices of each expert in the span.
    """

    seen: Array
    counts: Array


def positions(
    hot: Float[Array, "B T K E"], span: int, before: Filled, axis: str | None = None
) -> tuple[Int[Array, "B T K"], Filled]:
    """How many tokens of its span chose an expert before this one: the running count.

    Args:
      hot: see `Choice`; a token chooses an expert once.
      span: tokens of a span.
      before: the counts after the tokens before these.
      axis: mesh axis that splits the tokens.

    Returns:
      The positions, and what comes before the next token.
    """
    chosen = jnp.sum(hot, axis=2).astype(jnp.int32)
    tokens, shards = chosen.shape[1], collectives.axis_size(axis)
    own = collectives.axis_index(axis)
    place = before.seen[:, None] + own * tokens + jnp.arange(tokens)  # [B, T]
    total = jnp.cumsum(chosen, axis=1)
    until = total - chosen
    start = jnp.arange(tokens) - place % span  # of this token's span; it may be on a shard before
    here = (start >= 0)[..., None]
    left_out = jnp.take_along_axis(until, jnp.maximum(start, 0)[..., None], axis=1)
    left_out = jnp.where(here, left_out, 0)
    tail = total[:, -1] - left_out[:, -1]  # what this shard adds to the span that it ends in
    # A span begins in a shard or does not, which is known of every shard.
    firsts = before.seen + tokens * jnp.arange(shards)[:, None]
    begins = (firsts + tokens - 1) // span > (firsts - 1) // span  # [S, B]
    tails = tail[None] if axis is None else lax.all_gather(tail, axis)
    earlier = _carried(tails, begins, before.counts, own)
    counts = until - left_out + jnp.where(here, 0, earlier[:, None])
    found = jnp.einsum("btke,bte->btk", hot.astype(jnp.int32), counts)
    alike = collectives.all_gather(tail[None], axis, dim=0)
    after = _carried(alike, begins, before.counts, shards)
    return found, Filled(before.seen + tokens * shards, after)


def _carried(
    tails: Int[Array, "S B E"],
    begins: Bool[Array, "S B"],
    before: Int[Array, "B E"],
    shard: Array | int,
) -> Int[Array, "B E"]:
    """What is taken, before a shard, of the span that goes on there."""
    index = jnp.arange(len(tails))[:, None]
    earlier = index < shard
    counted = jnp.cumsum(begins & earlier, axis=0)
    goes_on = earlier & (counted == counted[-1])  # no span begins between the shard and this one
    sums = jnp.sum(jnp.where(goes_on[..., None], tails, 0), axis=0)
    return sums + jnp.where((counted[-1] == 0)[:, None], before, 0)


def positions_by_choice(
    hot: Float[Array, "B T K E"], span: int, axis: str | None = None
) -> Int[Array, "B T K"]:
    """As `positions`, where all first choices of a span come before all second ones.

    Raises:
      ValueError: spans that are not whole on a device.
    """
    batch, tokens, chosen, experts = hot.shape
    if axis is not None and tokens % span:
        raise ValueError(
            f"spans of {span} tokens are not whole in shards of {tokens}: change capacity.tokens"
        )
    padded = jnp.pad(hot, ((0, 0), (0, -tokens % span), (0, 0), (0, 0)))
    by_choice = jnp.swapaxes(padded.reshape(-1, span, chosen, experts), 1, 2)
    place = _running_count(by_choice.reshape(-1, chosen * span, experts))
    place = jnp.swapaxes(place.reshape(-1, chosen, span), 1, 2)
    return place.reshape(batch, -1, chosen)[:, :tokens]


def positions_on_device(hot: Float[Array, "B T K E"], by_choice: bool) -> Int[Array, "B T K"]:
    """As `positions`, where the tokens that a device holds are one span, all rows together.

    Earlier positions of the sequences come first; with `by_choice` all first choices do.
    """
    order = (2, 1, 0) if by_choice else (1, 0, 2)
    moved = jnp.transpose(hot, (*order, 3))
    place = _running_count(moved.reshape(1, -1, hot.shape[3])).reshape(moved.shape[:3])
    return jnp.transpose(place, [order.index(dim) for dim in range(3)])


def _running_count(hot: Float[Array, "S N E"]) -> Int[Array, "S N"]:
    """How many before each have its expert."""
    chosen = hot.astype(jnp.int32)
    return jnp.sum(chosen * (jnp.cumsum(chosen, axis=1) - chosen), axis=2)


def balance_loss(counts: Float[Array, "... E"], mass: Float[Array, "... E"]) -> Float[Array, ...]:
    """E sum_e f_e P_e: 1 where both are even (Switch, section 2.2).

    Args:
      counts: choices of each expert; f is their share. (With f as choices per token, as some have
        it, the loss is K times as large.)
      mass: sums of the tokens' probabilities; P is their share.
    """
    shares = [x / jnp.maximum(jnp.sum(x, axis=-1, keepdims=True), 1e-9) for x in (counts, mass)]
    return counts.shape[-1] * jnp.sum(shares[0] * shares[1], axis=-1)


def entropy(probabilities: Float[Array, "... E"]) -> Float[Array, ...]:
    """-sum p log p in nats."""
    return jnp.sum(jax.scipy.special.entr(probabilities), axis=-1)


def max_violation(load: Any) -> Any:
    """(max - mean) / mean of loads [..., E] (MaxVio, arXiv 2408.15664, section 3.1)."""
    mean = load.mean(axis=-1)
    return (load.max(axis=-1) - mean) / mean
