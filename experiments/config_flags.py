"""The flag --config: a config file, and --config.a.b=value to override its fields."""

from __future__ import annotations

import pathlib
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from gam_jax.config import from_dict, to_dict
from gam_jax.training.experiment import Experiment

DEFAULT_CONFIG = pathlib.Path(__file__).parent / "configs" / "gam_small.py"


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
