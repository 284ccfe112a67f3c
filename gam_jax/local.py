"""Workers that train alone for some steps and then meet: Local SGD, SlowMo, DiLoCo, CO2.

Sources: Local SGD (arXiv 1805.09767), SlowMo (arXiv 1910.00643), DiLoCo (arXiv 2311.08105), CO2
(arXiv 2401.16265). The rule of stability of a delayed update is derived here, see `Local.growth`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from gam_jax.params import Params
from sharding.bounds import AtLeastOne, NotNegative, Positive, Rate, Size, Switch, check_bounds

MARGIN = 1e-6
"""Of eigenvalues: so close to 1 is 1."""


@dataclasses.dataclass(frozen=True)
class Local:
    """How workers of a run go on alone, and what they make of it when they meet.

    All begin a round at the same parameters x. Each takes `every` steps of the run's optimizer on
    its own rows and sends by how much it has moved, x - x_i. Of the mean of that, d,

      m' = clip(momentum m + d / penalty),   x' = x - rate m',

    or with `nesterov` x' = x - rate clip(momentum m' + d / penalty). Of delay 0, d is of this round
    (Local SGD with rate 1 and no momentum; SlowMo; DiLoCo with `nesterov`). Of delay 1, d is of the
    round before, so that it can be summed while this one is computed (CO2); in the first round
    it is 0. SlowMo divides d by the step's rate and multiplies by it again, which differs only
    where that changes between rounds.

    Attributes:
      workers: how many there are; the rows of a batch are dealt out among them.
      every: steps of a round.
      delay: rounds between what is sent and its use, 0 or 1.
      rate: of the step that all take together.
      momentum: what is kept of the last such step.
      nesterov: whether the step looks ahead.
      penalty: what d is divided by; CO2 makes it larger the staler d is, here it is one number.
      clip: most of the absolute value of each number of m'; none for no bound. 0 freezes.
    """

    workers: Size = 1
    every: Size = 1
    delay: Switch = 0
    rate: Positive = 1.0
    momentum: Rate = 0.0
    nesterov: bool = False
    penalty: AtLeastOne = 1.0
    clip: NotNegative | None = None

    def __post_init__(self) -> None:
        check_bounds(self, "train.local")

    @property
    def on(self) -> bool:
        """Whether a run differs from one without workers."""
        return self != Local()

    def growth(self, share: float) -> float:
        """By what factor an error grows, in the end, in a round on a quadratic.

        With steps of size s along a direction of curvature a, a worker goes the `share`
        p = 1 - (1 - s a)^every of its way to the minimum: d = p x. What follows of the update is
        linear, without clip, and grows as its largest eigenvalue. For delay 1 without `nesterov`
        it is 1 exactly where rate p / penalty + momentum = 1.

        Args:
          share: p, from 0 to 1.
        """
        found, kept, rate = share / self.penalty, self.momentum, self.rate
        ahead = kept if self.nesterov else 1.0  # the step is ahead m' + also d / penalty
        also = 1.0 if self.nesterov else 0.0
        matrix = np.zeros((3, 3))  # of (x, x a round ago, m)
        source = 1 if self.delay else 0
        matrix[2, 2], matrix[2, source] = kept, found
        matrix[1, 0] = 1.0
        matrix[0] = -rate * ahead * matrix[2]
        matrix[0, source] -= rate * also * found
        matrix[0, 0] += 1.0
        return float(np.max(np.abs(np.linalg.eigvals(matrix))))

    def bound(self) -> float | None:
        """The smallest share p at which a quadratic diverges; None if it does at none up to 1."""
        if self.growth(1.0) < 1 - MARGIN:
            return None
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.growth(middle) >= 1 else (middle, high)
        return high

    def warning(self) -> str:
        """What a person should know of the stability of these numbers; empty if nothing."""
        bound = self.bound() if self.on else None
        if bound is None:
            return ""
        rule = "rate p / penalty + momentum >= 1"
        kept = "" if self.clip is None else ", as far as its clip lets it,"
        shown = f" ({rule})" if self.delay and not self.nesterov else ""
        return (
            f"train.local: on a quadratic this diverges{kept} where a round goes p >= {bound:.3g} "
            f"of the way to the minimum{shown}; p nears 1 as train.local.every grows: raise the "
            f"penalty, or lower rate or momentum"
        )


class LocalState(NamedTuple):
    """The state of a run's optimizer between two rounds, when all workers have the same parameters.

    Attributes:
      momentum: m, in the shapes of the parameters; None without momentum.
      sent: x - x_i of the last round, [workers, ...]; None of delay 0.
      inner: the state of each worker's own optimizer, every array [workers, ...].
    """

    momentum: Any
    sent: Any
    inner: Any


class Workers(optax.GradientTransformation):
    """An optimizer of workers: `init` is that of their state, and a round is their update.

    Attributes:
      local: what they do.
      own: the optimizer that each has of its own.
    """

    local: Local
    own: optax.GradientTransformation


def with_workers(
    optimizer: optax.GradientTransformation, local: Local
) -> optax.GradientTransformation:
    """The optimizer of workers that use this one; itself where there are none."""
    if not local.on:
        return optimizer

    def init(params: Any) -> LocalState:
        def for_each(x: Array) -> Array:
            return jnp.broadcast_to(x, (local.workers, *x.shape))

        zeros = jax.tree.map(jnp.zeros_like, params)
        return LocalState(
            momentum=zeros if local.momentum else None,
            sent=jax.tree.map(for_each, zeros) if local.delay else None,
            inner=jax.tree.map(for_each, optimizer.init(params)),
        )

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        raise TypeError("workers are updated in rounds: see gam_jax.training.rounds")

    made = Workers(init, update)
    made.local, made.own = local, optimizer
    return made


def meet(local: Local, params: Params, momentum: Any, moved: Params) -> tuple[Params, Any]:
    """Parameters that all workers go on from, and their momentum.

    Args:
      local: the numbers of the update.
      params: those that this round began with.
      momentum: before; None without momentum.
      moved: d, the mean over workers of by how much parameters became smaller.
    """

    def clipped(x: Array) -> Array:
        return x if local.clip is None else jnp.clip(x, -local.clip, local.clip)

    def kept(m: Array, d: Array) -> Array:
        return clipped(local.momentum * m + d / local.penalty)

    if momentum is None:
        steps = jax.tree.map(lambda d: clipped(d / local.penalty), moved)
    else:
        momentum = jax.tree.map(kept, momentum, moved)
        steps = jax.tree.map(kept, momentum, moved) if local.nesterov else momentum
    return jax.tree.map(lambda x, step: x - local.rate * step, params, steps), momentum
