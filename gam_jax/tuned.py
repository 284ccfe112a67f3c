"""Values that `gam tune` has found for a machine, used where a config asks for them by their file.

  def get_config():
      return config(with_tuned(EXPERIMENT, "tuned.json"))

An entry is of one op, shape, dtype and device; a layer of any other is left as it is.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax

from gam_jax.layers import LinearMemory
from gam_jax.layers.base import Layer
from sharding.compile_cache import processor
from sharding.errors import UserError
from sharding.json_file import BadJson, read_json

T = TypeVar("T")

SCAN = "memory_scan"
DECAYS = {"none": "none", "fixed": "head", "head": "head", "channel": "channel"}
"""A recipe's decay -> what a scan sees of it."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """What was found.

    Attributes:
      op: "memory_scan", "attention" or "blocks".
      shape: sizes and kinds by name.
      dtype: of what it is given.
      device: see `device_name`.
      settings: the best ones.
      default: those that are taken where nobody says anything.
      seconds: median of the best.
      default_seconds: of the default, in the same turns.
    """

    op: str
    shape: Mapping[str, Any]
    dtype: str
    device: str
    settings: Mapping[str, Any]
    default: Mapping[str, Any]
    seconds: float
    default_seconds: float


def device_name() -> str:
    """The kind of device that programs run on here; of a processor, its instructions' name."""
    device = jax.devices()[0]
    return processor() if device.platform == "cpu" else device.device_kind


def read_tuned(path: str | pathlib.Path) -> list[Entry]:
    """The entries of a file that `gam tune` wrote.

    Raises:
      UserError: there is no such file, or it is another one.
    """
    path = pathlib.Path(path)
    try:
        found = read_json(path)
        return [Entry(**each) for each in found["entries"]]
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file: write it by gam tune") from error
    except (KeyError, TypeError) as error:
        raise BadJson(path, "is no file that gam tune wrote", "write it anew") from error


def with_tuned(experiment: T, path: str | pathlib.Path, device: str = "") -> T:
    """The experiment with the settings that were found best for its layers on this device.

    Scans of linear memories take their method and chunk. A layer of which the file has no entry of
    the same shape, dtype and device stays as it is.

    Args:
      experiment: with a language model, and text in windows.
      path: of the file.
      device: whose entries are taken; this machine's if empty.

    Raises:
      UserError: see `read_tuned`.
    """
    own: Any = experiment
    device = device or device_name()
    entries = [each for each in read_tuned(path) if each.device == device]
    rows = own.train.batch // own.train.accumulate

    def tuned(layer: Layer) -> Layer:
        if not isinstance(layer, LinearMemory) or layer.width is None:
            return layer
        wanted = scan_shape(layer, rows, own.data.window), own.model.dtype
        for each in entries:
            if each.op == SCAN and (dict(each.shape), each.dtype) == wanted:
                return dataclasses.replace(layer, **each.settings)
        return layer

    return dataclasses.replace(own, model=_mapped(own.model, tuned))


def scan_shape(layer: LinearMemory, rows: int, tokens: int) -> dict[str, Any]:
    """What the scan of a linear memory is given, by which entries are found."""
    decay = "channel" if layer.decay_rank else DECAYS[layer.recipe.decay]
    return {
        "rule": layer.recipe.rule,
        "decay": decay,
        "rows": rows,
        "tokens": tokens,
        "groups": layer.groups,
        "heads": layer.heads,
        "keys": layer.keys,
        "values": layer.values + layer.averages,
    }


def _mapped(value: Any, change: Any) -> Any:
    """A dataclass with every layer in it changed, the outer ones after the inner ones."""
    if isinstance(value, tuple):
        return tuple(_mapped(each, change) for each in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    found = {
        name: _mapped(each, change)
        for name, each in fields.items()
        if isinstance(each, Layer | Sequence) and not isinstance(each, str)
    }
    changed = {name: each for name, each in found.items() if each != fields[name]}
    value = dataclasses.replace(value, **changed) if changed else value
    return change(value) if isinstance(value, Layer) else value
