"""An experiment: everything that decides a run, as one frozen dataclass."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import optax

from gam_jax.bilevel import Bilevel, two_levels
from gam_jax.config import flatten, to_dict, unknown
from gam_jax.data.base import Data
from gam_jax.data.text import Text
from gam_jax.local import Local, with_workers
from gam_jax.models.base import Model
from gam_jax.optimizer import OptimizerConfig, learning_rate_schedule, trained
from sharding.bounds import Count, NotNegative, Seed, Size, check_bounds
from sharding.checkpoint import CheckpointConfig
from sharding.errors import UserError
from sharding.parallel import Parallel


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    Attributes:
      steps: updates in the whole schedule.
      batch: windows in an update, all devices together.
      accumulate: parts that a batch is taken in, one after another.
      local: workers that train alone for some steps and then meet.
      bilevel: an optimizer of their own for logits of mixed layers.
      seed: of parameters, data order and dropout.
      log_every: steps between lines of training metrics.
      validate_every: steps between validations; there is one more at the end.
      validate_first: a step after which it validates too, so that something is seen soon; 0 for
        none.
      tokens: train on that many first tokens of the split; 0 for all. Baselines count the same
        ones.
      validation_tokens: validate on that many first tokens of the split; 0 for all. Baselines
        are scored on the same ones.
      stop_at: end at this step, without changing the schedule; 0 for `steps`.
      goal: end once a validation reaches it, as "accuracy>=0.99" or "loss<=1.5"; empty for no goal.
      straggler: report a process whose step time is that many times the median; 0 for none.
    """

    steps: Size = 1000
    batch: Size = 16
    accumulate: Size = 1
    local: Local = Local()
    bilevel: Bilevel = Bilevel()
    seed: Seed = 0
    log_every: Size = 10
    validate_every: Size = 200
    validate_first: Count = 0
    tokens: Count = 0
    validation_tokens: Count = 0
    stop_at: Count = 0
    goal: str = ""
    straggler: NotNegative = 2.0

    def __post_init__(self) -> None:
        check_bounds(self, "train")
        if self.goal:
            _ = self.reached({})
        if self.straggler and self.straggler <= 1:
            raise UserError(f"train.straggler={self.straggler}: give more than 1, or 0 for none")
        parts = self.accumulate * self.local.workers
        if self.batch % self.accumulate == 0 and self.batch % parts:
            raise UserError(
                f"train.batch={self.batch} cannot be dealt out to train.local.workers="
                f"{self.local.workers} in {self.accumulate} equal parts: choose a multiple of "
                f"{parts}"
            )
        if self.bilevel.on and self.accumulate % 2:
            raise UserError(
                f"train.accumulate={self.accumulate}: with train.bilevel half of the parts of a "
                f"batch train logits: choose an even number"
            )
        if self.bilevel.on and self.local.on:
            raise UserError("train.bilevel and train.local: workers have no logits, take one")
        for name in ("steps", "stop_at"):
            if getattr(self, name) % self.local.every:
                raise UserError(
                    f"train.{name}={getattr(self, name)} is no whole number of rounds of "
                    f"train.local.every={self.local.every} steps: choose a multiple"
                )
        if self.batch % self.accumulate:
            raise UserError(
                f"train.batch={self.batch} cannot be taken in train.accumulate="
                f"{self.accumulate} equal parts: choose a multiple"
            )

    def reached(self, scores: Mapping[str, float]) -> bool:
        """Whether the scores of a validation are as good as the goal asks; False without a goal.

        Raises:
          UserError: the goal is no name, comparison and number, or (of scores that are there)
            names none of them.
        """
        if not self.goal:
            return False
        found = re.fullmatch(r"(\S+?)\s*(>=|<=)\s*([-+.\deE]+)", self.goal.strip())
        try:
            name, sign, bound = found.groups() if found else ("", "", "")
            wanted = float(bound)
        except ValueError:
            raise UserError(
                f"train.goal={self.goal}: write a score, >= or <= and a number, as accuracy>=0.99"
            ) from None
        if not scores:
            return False
        if name not in scores:
            raise UserError(f"train.goal={self.goal}: {unknown(name, scores, 'score')}")
        return scores[name] >= wanted if sign == ">=" else scores[name] <= wanted

    @property
    def parts(self) -> int:
        """Of a batch, those that go through a step together: half where logits have their own."""
        return self.accumulate // 2 if self.bilevel.on else self.accumulate

    def validates(self, step: int) -> bool:
        """Whether a validation comes after that step, or at the end of the round that it is in."""
        return self.due(step, self.validate_every) or (step == self.round_end(self.validate_first))

    def due(self, step: int, every: int) -> bool:
        """Whether what is done every so many steps is done after that step, the end of a round."""
        return step // every > (step - self.local.every) // every

    def round_end(self, step: int) -> int:
        """The end of the round that a step is in."""
        return -(-step // self.local.every) * self.local.every

    @property
    def last_step(self) -> int:
        """The step at which this run ends."""
        return min(self.stop_at or self.steps, self.steps)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A complete, readable record of a run; `experiments/configs/` builds them."""

    model: Model
    data: Data = Text()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    parallel: Parallel = Parallel()

    def __post_init__(self) -> None:
        learning_rate_schedule(self.optimizer, self.train.steps)  # refuses what does not fit


def run_optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """The optimizer of a run, of all its workers where it has some.

    Raises:
      UserError: see `two_levels`; parameters would move that are the model's `frozen`.
    """
    train, model, only = experiment.train, experiment.model, experiment.optimizer.only
    table = model.table()
    own = two_levels(experiment.optimizer, train.bilevel, train.steps, table)
    if moved := [name for name in trained(own, table) if name in model.frozen]:
        rest = ",".join(f"{name}/*" for name in table if name not in model.frozen)
        raise UserError(
            f"optimizer.only={only}: weight decay would move {', '.join(moved)}, which "
            f"{type(model).__name__} keeps as it is: give optimizer.only={rest}, or less"
        )
    return with_workers(own, train.local)


FREE_TO_CHANGE = {
    "train.stop_at",
    "train.goal",
    "train.straggler",
    "train.log_every",
    "train.validate_every",
    "train.validate_first",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.keep_best",
    "checkpoint.keep_every",
    "checkpoint.frozen",
    "data.dir",
    "data.workers",
    "parallel.preset",
    "parallel.rules",
    "parallel.schedule",
    "parallel.turns",
    "parallel.stages",
    "parallel.speeds",
    "parallel.shards",
    "parallel.overlap",
    "parallel.offload",
}
"""Fields that do not change what a run computes, so they may differ when it is resumed."""


Changes = dict[str, tuple[Any, Any]]
"""Fields by dotted name: (before, now)."""

CHANGEABLE = {
    "train.steps",
    "train.batch",
    "train.accumulate",
    "optimizer.learning_rate",
    "optimizer.warmup",
    "optimizer.schedule",
    "optimizer.final",
    "optimizer.cooldown",
    "optimizer.clip",
    "parallel.bits",
}
"""Fields that may be changed when a run is resumed, if they are named; and every `dropout`."""


def may_change(name: str) -> bool:
    """Whether a field, dotted, may be changed by naming it when a run is resumed."""
    return name in CHANGEABLE | FREE_TO_CHANGE or name.split(".")[-1] == "dropout"


def check_change(named: Iterable[str], experiment: Experiment) -> None:
    """Refuses names of fields that may not be changed when a run is resumed.

    Raises:
      UserError: such a name, or one of no field.
    """
    fields = flatten(to_dict(experiment))
    for name in named:
        if name not in fields and not may_change(name):
            near = unknown(name, [field for field in fields if may_change(field)], "field")
            raise UserError(f"--change={name}: {near}")
        if not may_change(name):
            raise UserError(
                f"--change={name}: it decides what the run is, and stays; what may change is "
                f"{', '.join(sorted(CHANGEABLE))} and dropout"
            )


def changed_fields(old: Experiment, new: Experiment, named: Collection[str] = ()) -> Changes:
    """Fields whose values differ: name, dotted, -> (before, now); None where it is not set.

    Those that do not change what a run computes are left out, unless they are named.
    """
    before, after = flatten(to_dict(old)), flatten(to_dict(new))
    pairs = {name: (before.get(name), after.get(name)) for name in before.keys() | after.keys()}
    spans = [one.optimizer.warmup_steps(one.train.steps) for one in (old, new)]
    if spans[0] == spans[1] and "optimizer.warmup" not in named:
        del pairs["optimizer.warmup"]  # the same steps, said in another way
    return {
        name: pairs[name]
        for name in sorted(pairs)
        if pairs[name][0] != pairs[name][1] and (name not in FREE_TO_CHANGE or name in named)
    }
