"""A probability for each value, learned from scores: as pure functions, and as a strategy.

Three rules on one table. `reinforce` goes up the gradient of the expected reward (Williams 1992);
`ants` moves towards the best of a round (ant systems in the hyper-cube framework, Blum and Dorigo
2004); `cross_entropy` moves towards how often the best share of a round has each value (Rubinstein
1999). A factorised table has probabilities of each choice by itself: with one shared reward its
gradient is that of one independent agent a choice (MARL-DSE, arXiv 2211.16385). A joint table has
one for every point.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gam_jax.config import unknown
from gam_jax.search.space import Point, Space
from gam_jax.search.strategies import Searcher, Strategy, Told
from sharding.bounds import Positive, Rate, Share, Size, check_bounds
from sharding.errors import UserError

RULES = ("reinforce", "ants", "cross_entropy")
JOINT = 100_000
"""The most points of a joint table."""
LEAST = -16.0
"""Logarithm below which no probability falls, so that every value may come back."""


class Settings(NamedTuple):
    """What a rule takes; numbers or arrays, so that `jax.vmap` runs many settings at once.

    Attributes:
      rate: of learning: of reinforce on logits, of the others the share of the new.
      greed: of ants: how likely a choice takes its likeliest value.
      elite: of cross_entropy: the share of a round that is imitated.
    """

    rate: Float[Array, ""] | float
    greed: Float[Array, ""] | float = 0.0
    elite: Float[Array, ""] | float = 0.2


def uniform(sizes: Sequence[int]) -> Float[Array, "C V"]:
    """Logits of choices of these sizes, all values alike; -inf where a choice has no value."""
    there = np.arange(max(sizes)) < np.asarray(sizes)[:, None]
    return jnp.asarray(np.where(there, 0.0, -np.inf))


@functools.partial(jax.jit, static_argnames="count")
def draw(
    logits: Float[Array, "C V"], key: Array, count: int, greed: Float[Array, ""] | float = 0.0
) -> Int[Array, "N C"]:
    """Values of each choice, drawn independently.

    Args:
      logits: of the table.
      key: of the draws.
      count: N, how many.
      greed: how likely a choice takes its likeliest value.
    """
    own, coin = jax.random.split(key)
    shape = (count, logits.shape[0])
    drawn = jax.random.categorical(own, logits, shape=shape)
    greedy = jax.random.uniform(coin, shape) < greed
    return jnp.where(greedy, jnp.argmax(logits, axis=1), drawn)


def log_likelihood(logits: Float[Array, "C V"], drawn: Int[Array, "N C"]) -> Float[Array, " N"]:
    """Of points under a factorised table: a sum over choices."""
    logs = jax.nn.log_softmax(logits, axis=1)
    return jnp.sum(logs[jnp.arange(logits.shape[0]), drawn], axis=1)


def advantages(scores: Float[Array, " N"]) -> Float[Array, " N"]:
    """How much better than the round's mean each is, in standard deviations; refused: the worst."""
    finite = jnp.isfinite(scores)
    worst = jnp.max(jnp.where(finite, scores, -jnp.inf))
    rewards = -jnp.where(finite, scores, jnp.where(jnp.isfinite(worst), worst, 0.0))
    apart = rewards - jnp.mean(rewards)
    spread = jnp.sqrt(jnp.mean(apart**2))
    return apart / jnp.where(spread > 0, spread, 1.0)


@functools.partial(jax.jit, static_argnames="rule")
def update(
    rule: str,
    logits: Float[Array, "C V"],
    drawn: Int[Array, "N C"],
    scores: Float[Array, " N"],
    settings: Settings,
) -> Float[Array, "C V"]:
    """The table after a round.

    Args:
      rule: of RULES.
      logits: of the table.
      drawn: the round's points.
      scores: theirs; lower is better.
      settings: of the rule.
    """
    there = jnp.isfinite(logits)
    chosen = jax.nn.one_hot(drawn, logits.shape[1])  # [N, C, V]
    if rule == "reinforce":
        apart = chosen - jax.nn.softmax(logits, axis=1)
        moved = logits + settings.rate * jnp.mean(advantages(scores)[:, None, None] * apart, axis=0)
        logs = jax.nn.log_softmax(moved, axis=1)
    else:
        wanted = _best(chosen, scores) if rule == "ants" else _often(chosen, scores, settings)
        mixed = (1 - settings.rate) * jax.nn.softmax(logits, axis=1) + settings.rate * wanted
        worth = jnp.any(jnp.isfinite(scores))
        logs = jnp.where(worth, jnp.log(mixed), jax.nn.log_softmax(logits, axis=1))
    return jnp.where(there, jnp.maximum(logs, LEAST), -jnp.inf)


def _best(chosen: Float[Array, "N C V"], scores: Float[Array, " N"]) -> Float[Array, "C V"]:
    return chosen[jnp.argmin(scores)]


def _often(
    chosen: Float[Array, "N C V"], scores: Float[Array, " N"], settings: Settings
) -> Float[Array, "C V"]:
    """How often the best share of a round has each value; at least one point counts."""
    place = jnp.argsort(jnp.argsort(scores))
    many = jnp.maximum(jnp.round(settings.elite * len(scores)), 1)
    counted = ((place < many) & jnp.isfinite(scores)).astype(chosen.dtype)
    return jnp.einsum("n,ncv->cv", counted, chosen) / jnp.maximum(jnp.sum(counted), 1)


@functools.partial(jax.jit, static_argnames=("cost", "rule", "sizes", "rounds", "count"))
def learn(
    cost: Callable[[Int[Array, "N C"]], Float[Array, " N"]],
    rule: str,
    sizes: tuple[int, ...],
    rounds: int,
    count: int,
    settings: Settings,
    key: Array,
) -> tuple[Float[Array, "C V"], Int[Array, "R N C"], Float[Array, "R N"]]:
    """A whole search with a cost that JAX can compute: one program, also under `jax.vmap`.

    Args:
      cost: of points [N, C].
      rule: of RULES.
      sizes: of the choices.
      rounds: R, how often points are drawn and the table is changed.
      count: N, points of a round.
      settings: of the rule.
      key: of the draws; another one for each search of a batch.

    Returns:
      The last table, all points and their scores.
    """

    def one(logits: Array, number: Array) -> tuple[Array, tuple[Array, Array]]:
        drawn = draw(logits, jax.random.fold_in(key, number), count, settings.greed)
        scores = cost(drawn)
        return update(rule, logits, drawn, scores, settings), (drawn, scores)

    last, (drawn, scores) = jax.lax.scan(one, uniform(sizes), jnp.arange(rounds))
    return last, drawn, scores


@dataclasses.dataclass(frozen=True)
class TableSearch(Strategy):
    """A table as a strategy; a round is what is asked between two changes of it.

    Attributes:
      rule: "reinforce", "ants" or "cross_entropy".
      joint: a probability for every point, and not for every value.
      count: points of a round.
      rate: see `Settings`.
      greed: likewise.
      elite: likewise.
    """

    rule: str = "reinforce"
    joint: bool = False
    count: Size = 8
    rate: Positive = 0.3
    greed: Rate = 0.0
    elite: Share = 0.25

    def __post_init__(self) -> None:
        check_bounds(self, "table")
        if self.rule not in RULES:
            raise UserError(f"table.rule: {unknown(self.rule, RULES, 'rule')}")
        if self.rule != "reinforce" and self.rate > 1:
            raise UserError(f"table.rate={self.rate}: {self.rule} takes a share, at most 1")
        if self.count == 1 and self.rule == "reinforce":
            raise UserError("table.count=1: reinforce compares points of a round: give 2 or more")

    def begin(self, space: Space, seed: int = 0) -> Searcher:
        """See `Strategy`.

        Raises:
          UserError: a joint table of too many points.
        """
        if self.joint and space.size > JOINT:
            raise UserError(
                f"table.joint: {space.size:,} points are more than {JOINT:,}: leave it factorised"
            )
        return _Rounds(self, space, seed)

    @property
    def settings(self) -> Settings:
        """Its numbers."""
        return Settings(self.rate, self.greed, self.elite)


class _Rounds(Searcher):
    def __init__(self, settings: TableSearch, space: Space, seed: int) -> None:
        self._own, self._space = settings, space
        self._key = jax.random.key(seed)
        self._sizes = (space.size,) if settings.joint else space.sizes
        self._logits = uniform(self._sizes)
        self._round, self._waiting, self._told = 0, [], []

    def ask(self, count: int) -> list[Point]:
        if not self._waiting:
            key = jax.random.fold_in(self._key, self._round)
            drawn = draw(self._logits, key, self._own.count, self._own.greed)
            self._waiting = [tuple(row) for row in np.asarray(drawn).tolist()]
            self._round += 1
        found, self._waiting = self._waiting[:count], self._waiting[count:]
        return [self._space.point(row[0]) if self._own.joint else row for row in found]

    def tell(self, results: Sequence[Told]) -> None:
        self._told += results
        if len(self._told) < self._own.count:
            return
        points = [
            (self._space.number(each.point),) if self._own.joint else each.point
            for each in self._told
        ]
        scores = np.array([each.score for each in self._told], np.float32)
        drawn = np.array(points, np.int32)
        self._logits = update(self._own.rule, self._logits, drawn, scores, self._own.settings)
        self._told = []
