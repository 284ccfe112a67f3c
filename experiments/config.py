"""An experiment: everything that decides a run, as one frozen dataclass."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from gam_jax.config import flatten, from_dict, to_dict
from gam_jax.data.config import DataConfig
from gam_jax.model import LanguageModel
from gam_jax.optimizer import OptimizerConfig, learning_rate_schedule
from sharding.checkpoint import CheckpointConfig
from sharding.errors import UserError
from sharding.layout import Parallel

DEFAULT_CONFIG = pathlib.Path(__file__).parent / "configs" / "gam_small.py"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop.

    Attributes:
      steps: updates in the whole schedule.
      batch: windows in an update, all devices together.
      accumulate: parts that a batch is taken in, one after another.
      seed: of parameters, data order and dropout.
      log_every: steps between lines of training metrics.
      validate_every: steps between validations; there is one more at the end.
      tokens: train on that many first tokens of the split; 0 for all. Baselines count the same
        ones.
      validation_tokens: validate on that many first tokens of the split; 0 for all. Baselines
        are scored on the same ones.
      stop_at: end at this step, without changing the schedule; 0 for `steps`.
      straggler: report a process whose step time is that many times the median; 0 for none.
    """

    steps: int = 1000
    batch: int = 16
    accumulate: int = 1
    seed: int = 0
    log_every: int = 10
    validate_every: int = 200
    tokens: int = 0
    validation_tokens: int = 0
    stop_at: int = 0
    straggler: float = 2.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "validate_every"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)}: give at least 1")
        for name in ("tokens", "validation_tokens", "stop_at"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name}={getattr(self, name)}: give 0 or more")
        if self.straggler and self.straggler <= 1:
            raise UserError(f"train.straggler={self.straggler}: give more than 1, or 0 for none")
        if self.batch % self.accumulate:
            raise UserError(
                f"train.batch={self.batch} cannot be taken in train.accumulate="
                f"{self.accumulate} equal parts: choose a multiple"
            )

    @property
    def last_step(self) -> int:
        """The step at which this run ends."""
        return min(self.stop_at or self.steps, self.steps)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A complete, readable record of a run; `experiments/configs/` builds them."""

    model: LanguageModel
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    parallel: Parallel = Parallel()

    def __post_init__(self) -> None:
        learning_rate_schedule(self.optimizer, self.train.steps)  # refuses what does not fit


FREE_TO_CHANGE = {
    "train.stop_at",
    "train.straggler",
    "train.log_every",
    "train.validate_every",
    "checkpoint.every",
    "checkpoint.keep",
    "checkpoint.keep_best",
    "checkpoint.keep_every",
    "data.dir",
    "data.workers",
    "parallel.preset",
    "parallel.rules",
}
"""Fields that do not change what a run computes, so they may differ when it is resumed."""


def config(experiment: Experiment) -> config_dict.ConfigDict:
    """What a config file's `get_config()` returns: the experiment, open to overrides."""
    values = to_dict(experiment)
    if values["model"]["vocab"] is None:
        del values["model"]["vocab"]  # ml_collections cannot override a None
    return config_dict.ConfigDict(values)


def define_config_flag(default: pathlib.Path = DEFAULT_CONFIG) -> None:
    """Flags --config=FILE, a file with `get_config()`, and --config.a.b=value to override it."""
    config_flags.DEFINE_config_file(
        "config",
        default=str(default),
        help_string="Config file; --config.a.b=value overrides.",
        # Fields that a layer inherits are left out of the file and may be set all the same;
        # `from_dict` refuses those that do not exist.
        lock_config=False,
        accept_new_attributes=True,
    )


def experiment_from_flags(saved: dict[str, Any] | None = None) -> Experiment:
    """The experiment that the command line asks for.

    Args:
      saved: the configuration of the run that is resumed. It stands in for the config file
        where --config names none; overrides apply to either.

    Raises:
      UserError: a value of the wrong type, or one that its dataclass refuses.
    """
    flag: Any = flags.FLAGS["config"]
    values = flag.value
    if saved is not None and flag.using_default_value:
        values = config_dict.ConfigDict(saved)
        values.update_from_flattened_dict(config_flags.get_override_values(flag))
    return from_dict(Experiment, values.to_dict())


def changed_fields(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Fields, dotted, whose values differ and that decide what a run computes."""
    before, after = flatten(old), flatten(new)
    return sorted(
        name
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name) and name not in FREE_TO_CHANGE
    )
