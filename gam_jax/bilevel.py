"""Logits of mixed layers, trained by an optimizer of their own on rows that the weights do not see.

Sources: DARTS (arXiv 1806.09055, section 2.3, first order) for the two levels; PC-DARTS (arXiv
1907.05737) for the steps before the first; ProxylessNAS (arXiv 1812.00332) for its rates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array

from gam_jax.ops.choices import ARCHITECTURE, others_kept
from gam_jax.optimizer import OptimizerConfig, check_span, make_optimizer, of_part, steps_of
from gam_jax.params import Table
from sharding.bounds import NotNegative, Positive, Rate, Size, Span, check_bounds
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Bilevel:
    """How logits of mixed layers are trained beside the weights: Adam, at a constant rate.

    Of the parts of a batch (`train.accumulate`, an even number) the second half trains the logits
    alone, before the first half trains the weights. A row is in one half: within one pass over
    the data, logits see rows that the weights have not seen.

    Attributes:
      rate: Adam's; 0, and logits are trained with the weights.
      beta1, beta2, eps: Adam's.
      weight_decay: decoupled.
      warmup: steps of the weights alone, in which logits stay as they are, bit for bit: below 1
        a share of the steps, from 1 on so many.
      every: steps of the weights for one of the logits.
      keep_others: shift the logits that have changed so that the other options keep their
        probabilities (`ops.choices.others_kept`); with beta1 0 these are the two of how="two".
    """

    rate: NotNegative = 0.0
    beta1: Rate = 0.5
    beta2: Rate = 0.999
    eps: Positive = 1e-8
    weight_decay: NotNegative = 0.0
    warmup: Span = 0.0
    every: Size = 1
    keep_others: bool = False

    def __post_init__(self) -> None:
        check_bounds(self, "train.bilevel")
        check_span("train.bilevel.warmup", self.warmup)

    @property
    def on(self) -> bool:
        """Whether logits are trained apart."""
        return self.rate > 0


class LevelState(NamedTuple):
    """The optimizer's state where logits are trained apart: of the weights, and of the logits."""

    weights: Any
    logits: Any


class TwoLevels(optax.GradientTransformation):
    """An optimizer of weights and, by itself, of logits; its `update` is that of the weights.

    Attributes:
      config: of the logits.
      first: the step from which on they are trained.
      weights: of all but logits.
      logits: of these alone.
    """

    config: Bilevel
    first: int
    weights: optax.GradientTransformation
    logits: optax.GradientTransformation

    def due(self, step: Array) -> Array:
        """Whether logits are trained in that step, from 0."""
        return (step >= self.first) & ((step - self.first) % self.config.every == 0)

    def step_logits(self, grads: Any, state: Any, logits: Any) -> tuple[Any, Any]:
        """Logits after a step, and their state.

        Args:
          grads: by them.
          state: of their optimizer.
          logits: as `of_logits` gives them.
        """
        changes, state = self.logits.update(grads, state, logits)
        after: Any = optax.apply_updates(logits, changes)
        if self.config.keep_others:
            after = jax.tree.map(others_kept, logits, after)
        return after, state


def two_levels(
    config: OptimizerConfig, bilevel: Bilevel, steps: int, table: Table
) -> optax.GradientTransformation:
    """The optimizer of a run: `make_optimizer`'s, or two where logits are trained apart.

    Raises:
      UserError: no mixed layer; logits that are never trained; see also `make_optimizer`.
    """
    if not bilevel.on:
        return make_optimizer(config, steps, table)
    if not of_logits(table):
        raise UserError("train.bilevel.rate trains logits of mixed layers, and there is none")
    if config.only:
        raise UserError(f"optimizer.only={config.only}: with train.bilevel all weights are trained")
    first = steps_of(bilevel.warmup, steps)
    if first >= steps:
        raise UserError(f"train.bilevel.warmup={bilevel.warmup:g} is all of train.steps={steps}")
    weights = of_part(make_optimizer(config, steps, without_logits(table)), without_logits)
    adam = optax.scale_by_adam(bilevel.beta1, bilevel.beta2, bilevel.eps)
    decay = optax.add_decayed_weights(bilevel.weight_decay)
    logits = of_part(optax.chain(adam, decay, optax.scale(-bilevel.rate)), of_logits)

    def update(updates: Any, state: LevelState, params: Any = None) -> tuple[Any, LevelState]:
        changes, own = weights.update(updates, state.weights, params)
        return changes, state._replace(weights=own)

    made = TwoLevels(
        lambda params: LevelState(weights.init(params), logits.init(params)),
        update,  # type: ignore[arg-type]
    )
    made.config, made.first, made.weights, made.logits = bilevel, first, weights, logits
    return made


def of_logits(tree: Any) -> Any:
    """The part of a tree over parameters that is of logits; what is no dict stays."""
    return _parted(tree, logits=True, inside=False)


def without_logits(tree: Any) -> Any:
    """The rest of it."""
    return _parted(tree, logits=False, inside=False)


def _parted(tree: Any, logits: bool, inside: bool) -> Any:
    if not isinstance(tree, Mapping):
        return tree
    found: dict[str, Any] = {}
    for name, branch in tree.items():
        own = inside or name == ARCHITECTURE
        if isinstance(branch, Mapping):
            if part := _parted(branch, logits, own):
                found[name] = part
        elif own == logits:
            found[name] = branch
    return found


def with_logits(tree: Any, logits: Any) -> Any:
    """A tree over parameters with other logits."""
    if not isinstance(tree, Mapping):
        return logits
    return {
        name: with_logits(branch, logits[name]) if name in logits else branch
        for name, branch in tree.items()
    }
