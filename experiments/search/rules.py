"""How candidates are judged: when the worse half ends, what a run may cost, what is doubtful."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from gam_jax.training.experiment import Experiment
from sharding.bounds import NotNegative, Rate, Seed, Size, check_bounds
from sharding.errors import UserError

SCORED_ON = ("train.steps", "train.stop_at", "train.seed", "train.goal", "train.tokens")
"""Fields that all candidates share, as all of `data` but the window and `train.validat...`."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """How candidates are judged.

    Attributes:
      round: candidates that are asked for at once, and compete in halvings.
      halvings: how often the worse half of a round ends; the first time after 1/2^halvings of the
        base's steps, and after twice as many each time. 0 trains all to the end.
      doubt: a loss lower than the base's by more than this share is in doubt.
      parameters: at most so many times the base's; 0 for any.
      flops: of a token, likewise.
      held: bytes on a device, likewise.
      seed: of the strategy.
    """

    round: Size = 8
    halvings: int = 2
    doubt: Rate = 0.1
    parameters: NotNegative = 1.1
    flops: NotNegative = 2.0
    held: NotNegative = 4.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_bounds(self, "search")
        if not 0 <= self.halvings <= 20:
            raise UserError(f"search.halvings={self.halvings}: give 0 to 20")

    def rungs(self, steps: int) -> tuple[int, ...]:
        """Steps of the base at which candidates are compared; the last one is its last.

        Raises:
          UserError: too few steps for so many halvings.
        """
        if steps >> self.halvings < 1:
            raise UserError(
                f"search.halvings={self.halvings}: train.steps={steps} cannot be halved so often"
            )
        return tuple(steps >> left for left in range(self.halvings, -1, -1))


def check_paths(paths: Iterable[str]) -> None:
    """Refuses choices of what candidates are scored on.

    Raises:
      UserError: the first such path.
    """
    for path in paths:
        shared = path in SCORED_ON or path.startswith("train.validat")
        if shared or path == "data" or (path.startswith("data.") and path != "data.window"):
            raise UserError(
                f"space: '{path}' is the same for all candidates, which are scored on the same "
                f"text after as many tokens: leave it out"
            )


def with_tokens_of(experiment: Experiment, base: Experiment) -> Experiment:
    """The experiment with as many steps as see the base's tokens.

    Raises:
      UserError: no whole number of steps does.
    """
    steps = steps_of(base.train.steps, experiment, base)
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=steps))


def stopped_at(step: int, experiment: Experiment, base: Experiment) -> Experiment:
    """The experiment that ends with the tokens of a step of the base.

    Raises:
      UserError: no whole number of its steps, or of its rounds, sees as many.
    """
    train = dataclasses.replace(experiment.train, stop_at=steps_of(step, experiment, base))
    return dataclasses.replace(experiment, train=train)


def steps_of(step: int, experiment: Experiment, base: Experiment) -> int:
    """Steps of an experiment that see as many tokens as so many of the base.

    Raises:
      UserError: no whole number does.
    """
    own, other = (_tokens(one) for one in (experiment, base))
    if step * other % own:
        raise UserError(
            f"no whole number of steps of {own:,} tokens sees the {step * other:,} of the base's "
            f"{step}: choose train.batch and data.window so that it does"
        )
    return step * other // own


def _tokens(experiment: Experiment) -> int:
    """Of a step; rows where they are no sequences."""
    return experiment.train.batch * (getattr(experiment.data, "window", 0) or 1)


def check_limits(figures: Mapping[str, float], base: Mapping[str, float], rules: Rules) -> None:
    """Refuses what costs too many times what the base does.

    Args:
      figures: of a candidate.
      base: the base's.
      rules: that say how many times.

    Raises:
      UserError: the first figure above its limit, or no number (NaN).
    """
    for name, size in figures.items():
        times = getattr(rules, name, 0.0)
        if times and base.get(name) and not size <= times * base[name]:
            raise UserError(
                f"{name} {size:,.0f} are {size / base[name]:.2f} times the base's, and "
                f"--{name}={times:g} allows {times:g} times"
            )
