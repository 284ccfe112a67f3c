"""The flag --config: a config file, and --config.a.b=value to override its fields."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from experiments.imported import Imported
from gam_jax.config import from_dict, to_dict
from gam_jax.data import DATA
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder
from sharding.errors import UserError

CONFIGS = pathlib.Path(__file__).parent / "configs"
DEFAULT_CONFIG = CONFIGS / "gam_small.py"


def config(experiment: Experiment) -> config_dict.ConfigDict:
    """What a config file's `get_config()` returns: the experiment, open to overrides."""
    # Numbers as their fields have them: ml_collections overrides an int with whole numbers alone.
    values = to_dict(from_dict(Experiment, to_dict(experiment)))
    for around, name in ((values, "model"), (values["train"], "local")):
        # ml_collections cannot override a None
        around[name] = {field: x for field, x in around[name].items() if x is not None}
    return config_dict.ConfigDict(values)


def define_config_flag(default: pathlib.Path = DEFAULT_CONFIG, of_run: bool = False) -> None:
    """The flag --config, a name or a file; --config.a.b=value sets a field of it.

    Args:
      default: the file where --config names none.
      of_run: whether the configuration of the run that --run names stands in for that file, so
        that every field of it can be set.
    """
    named = any(word.lstrip("-").partition("=")[0] == "config" for word in sys.argv[1:])
    if of_run and not named and (saved := _of_run()) is not None:
        define: Any = config_flags.DEFINE_config_dict  # its types know no further arguments
        values = config_dict.ConfigDict(saved)
        define("config", values, lock_config=False, accept_new_attributes=True)
        return
    config_flags.DEFINE_config_file(
        "config",
        default=str(default),
        help_string=f"What to run: {', '.join(config_names())}, or a file, as mine.py. What "
        "follows a colon is given to it: compare:mamba2. --config.a.b=value sets a field.",
        # Fields that a layer inherits are left out of the file and may be set all the same;
        # `from_dict` refuses those that do not exist.
        lock_config=False,
        accept_new_attributes=True,
    )
    flag: Any = flags.FLAGS["config"]
    flag.parser, flag.default_as_str = _ByName(flag.parser), default.stem


def config_names() -> list[str]:
    """The configs of this package."""
    return sorted(path.stem for path in CONFIGS.glob("*.py") if not path.stem.startswith("_"))


def config_file(text: str) -> str:
    """The file that --config means, with what follows a colon.

    Raises:
      UserError: neither the name of a config nor a file.
    """
    name, colon, argument = text.partition(":")
    if name in config_names():
        return f"{CONFIGS / name}.py{colon}{argument}"
    if not pathlib.Path(name).is_file():
        raise UserError(
            f"no config '{name}': choose one of {', '.join(config_names())}, or give a file"
        )
    return text


def config_title() -> str:
    """The name of the config that the flags choose, as of a folder: gam_small, compare-mamba2."""
    file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "-".join([pathlib.Path(file).stem, *([argument] if argument else [])])


class _ByName(flags.ArgumentParser):
    """Opens a config by its name, or by its file."""

    def __init__(self, by_file: flags.ArgumentParser) -> None:
        self._by_file = by_file

    def parse(self, argument: str) -> Any:
        """What `get_config()` of it returns."""
        file = config_file(argument)
        try:
            return self._by_file.parse(file)
        except (TypeError, ValueError) as error:  # ml_collections puts a whole trace into it
            raise UserError(str(error.__context__ or error)) from error

    def flag_type(self) -> str:
        """That of the parser within."""
        return self._by_file.flag_type()


def _of_run() -> dict[str, Any] | None:
    """The configuration of the run that the command line names by --run; None where none is."""
    found = ""
    for word, following in itertools.pairwise([*sys.argv[1:], ""]):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == "run":
            found = value if equals else following
    return RunFolder(pathlib.Path(found)).saved_config() if found else None


def experiment_from_flags(
    saved: dict[str, Any] | None = None, imported: Imported | None = None, of_file: bool = True
) -> Experiment:
    """The experiment that the command line asks for.

    Args:
      saved: the configuration of the run that is resumed. It stands in for the config file
        where --config names none; overrides apply to either.
      imported: the model folder that a run starts from, which stands in for it likewise.
      of_file: whether a file that --config names comes before these; else it only registers
        classes.

    Raises:
      UserError: a value of the wrong type, or one that its dataclass refuses; of a model folder,
        another model.
    """
    flag: Any = flags.FLAGS["config"]
    values, overrides = flag.value, config_flags.get_override_values(flag)
    stands = flag.using_default_value or not of_file
    if stands and (saved is not None or imported is not None):
        values = config(imported.experiment) if imported else config_dict.ConfigDict(saved)
        values.update_from_flattened_dict(overrides)
    asked = from_dict(Experiment, _of_its_data(values.to_dict(), overrides, imported))
    if imported is not None:
        imported.check_model(asked.model)
    return asked


def _of_its_data(
    values: dict[str, Any], overrides: Mapping[str, Any], imported: Imported | None
) -> dict[str, Any]:
    """The values without fields that --config.data.name=... has left behind.

    Another class of data has other fields; those that the command line sets stay, so that a wrong
    one is named. Records that a model folder is trained on are packed, where its layers can.
    """
    data = values.get("data")
    records = overrides.get("data.format") in ("prompt", "chat")
    if imported is not None and records and "data.documents" not in overrides:
        values["data"]["documents"] = "rows" if imported.model.cannot_pack() else "packed"
    if "data.name" not in overrides or not isinstance(data, dict):
        return values
    kind = DATA.get(str(data["name"]).partition(":")[0])
    if kind is None:
        return values
    own = {field.name for field in dataclasses.fields(kind)}
    kept = {k: v for k, v in data.items() if k in own or f"data.{k}" in overrides}
    return {**values, "data": kept}


def define_classes_flag() -> None:
    """The flag --config of commands that open a run: the file that registers its classes."""
    flags.DEFINE_string(
        "config", "", "The file that registers the run's own classes, if it has any: mine.py."
    )


def register_classes() -> None:
    """Runs the file that --config names, which registers classes of its own.

    Raises:
      UserError: there is no such file, or it cannot be run.
    """
    text = flags.FLAGS.config
    if not text:
        return
    module_of(text.partition(":")[0], "--config")


def module_of(file: str, flag: str) -> Any:
    """A Python file, run; classes that it registers are known from then on.

    Args:
      file: its path.
      flag: that names it, for the message.

    Raises:
      UserError: there is no such file, or it cannot be run.
    """
    path = pathlib.Path(file)
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise UserError(f"{flag}={file}: there is no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # types of its dataclasses' fields are looked up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a file may raise anything
        raise UserError(f"{flag}={file} cannot be run: {error}") from error
    return module
