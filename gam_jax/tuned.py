"""Values that `gam tune` has found for a machine, used where a config asks for them by their file.

  def get_config():
      return config(with_tuned(EXPERIMENT, "tuned.json"))

An entry is of one op, shape, dtype and device; an op of any other is left as it is.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import jax

from gam_jax.config import unknown
from gam_jax.models import LanguageModel
from gam_jax.nested import with_held
from gam_jax.tuning.ops import Op
from gam_jax.tuning.table import DEFAULTS, TUNABLE, blocks_of, op_of, ops_of, part_of
from sharding import machine, plugins
from sharding.compile_cache import processor
from sharding.errors import UserError
from sharding.json_file import BadJson, read_json

T = TypeVar("T")
_AS_IT_IS = contextvars.ContextVar("as_it_is", default=False)
KINDS = {str: "a text", int: "a whole number", bool: "true or false"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What was found.

    Attributes:
      op: one of `gam_jax.tuning.table.DEFAULTS`.
      shape: sizes and kinds by name.
      dtype: of what it is given.
      device: see `device_name`.
      settings: the best ones.
      default: those that the run had, which the best were timed beside.
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

    @property
    def of(self) -> Op:
        """What it is of."""
        return Op(self.op, self.shape, self.dtype)

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for entries of equal ops on one device."""
        return (*self.of.key, self.device)


def device_name() -> str:
    """The kind of device that programs run on here; of a processor, its instructions' name.

    JAX is asked only where there are accelerators, or it has plugins that nobody knows: it cannot
    be told of emulated devices, or of other processes, after that.
    """
    told = getattr(jax.config, "jax_platforms", None) or ""
    if told.partition(",")[0] == "cpu" or not (machine.accelerators() or plugins.others()):
        return processor()
    device = jax.devices()[0]
    return processor() if device.platform == "cpu" else device.device_kind


def read_tuned(path: str | pathlib.Path) -> list[Entry]:
    """The entries of a file that `gam tune` wrote.

    Raises:
      UserError: there is no such file, or it is another one; an entry has a value of another type,
        or is there twice.
    """
    path = pathlib.Path(path)
    try:
        values = read_json(path, mend="write it anew")["entries"]
        entries = [Entry(**each) for each in values]
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file: write it by gam tune") from error
    except (KeyError, TypeError) as error:
        raise BadJson(path, "is no file that gam tune wrote", "write it anew") from error
    seen: dict[tuple[str, ...], int] = {}
    for number, entry in enumerate(entries):
        if why := _wrong(entry):
            raise BadJson(path, f"has an entry, number {number}, {why}", "write it anew")
        first = seen.setdefault(entry.key, number)
        if first != number:
            why = f"has two entries, numbers {first} and {number}, for {entry.of.shown}"
            raise BadJson(path, f"{why} on {entry.device}", "take one out")
    return entries


def _wrong(entry: Entry) -> str:
    """What of an entry `gam tune` does not write; empty where it may have."""
    kinds = {"op": str, "shape": dict, "dtype": str, "device": str, "settings": dict}
    for name, kind in (kinds | {"default": dict}).items():
        if not isinstance(getattr(entry, name), kind):
            return f"whose {name} is of another type"
    for name in ("seconds", "default_seconds"):
        value = getattr(entry, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            return f"whose {name} is no time"
    if entry.op not in DEFAULTS:
        return f"of an {unknown(entry.op, DEFAULTS, 'op')}"
    if any(isinstance(value, dict | list) for value in entry.shape.values()):
        return "whose shape is of another type"
    for of in (entry.settings, entry.default):
        for name, value in of.items():
            if why := _wrong_setting(entry.op, name, value):
                return why
    return ""


def _wrong_setting(op: str, name: str, value: Any) -> str:
    if name not in DEFAULTS[op]:
        return f"that sets {name}, which gam tune does not find for {op}"
    kind = type(DEFAULTS[op][name])
    if type(value) is not kind:
        return f"whose {name} is not {KINDS[kind]}"
    words = TUNABLE[op].words.get(name) if op in TUNABLE else None
    if words is not None and value not in words:
        return f"with an {unknown(value, words, name)}"
    return "" if kind is not int or value >= 0 else f"whose {name} is below 0"


@contextlib.contextmanager
def as_it_is() -> Iterator[None]:
    """Within it `with_tuned` gives the run as it is: so `gam tune` opens a config."""
    token = _AS_IT_IS.set(True)
    try:
        yield
    finally:
        _AS_IT_IS.reset(token)


def with_tuned(experiment: T, path: str | pathlib.Path, mesh: str = "", device: str = "") -> T:
    """The experiment with the settings that were found best for it on this device.

    Each layer of `gam_jax.tuning.table.TUNABLE` takes what was found for its op, and the model
    `remat` and `unroll`. An op of which the file has no entry of the same shape, dtype and device
    stays as it is. How many have taken theirs is said on standard error.

    `gam tune` reads a config in which this stands as if it did not: the run is tuned anew, beside
    the settings that its config gives without this, whether there is a file yet or not.

    Args:
      experiment: with a language model, and text in windows.
      path: of the file.
      mesh: devices along each axis, as the run's --mesh; one device if empty.
      device: whose entries are taken; this machine's if empty, see `device_name`.

    Raises:
      UserError: none has an entry; see also `read_tuned` and `part_of`.
    """
    if _AS_IT_IS.get():
        print(f"{path}: not read, the run is tuned as it is without", file=sys.stderr)
        return experiment
    run: Any = experiment
    device, part = device or device_name(), part_of(run, mesh)
    found = {each.of.key: each for each in read_tuned(path) if each.device == device}
    ops = list(ops_of(run, part))
    taken = sum(op.key in found for op in ops)
    if not taken:
        wanted = f"none of {len(ops)} ops, as {ops[0].shown}" if ops else "there are no such ops"
        raise UserError(
            f"{path}: has no entry for this run on {device} ({wanted}): write them by gam tune "
            f"--config, with the same --mesh"
        )
    print(f"{path}: {taken} of {len(ops)} ops take what was found", file=sys.stderr)

    def tuned(config: Any, op: Op | None) -> Any:
        entry = None if op is None else found.get(op.key)
        return config if entry is None else dataclasses.replace(config, **entry.settings)

    def within(config: Any) -> Any:
        return tuned(with_held(config, within), op_of(config, part, own.dtype))

    own: LanguageModel = run.model
    model = tuned(within(own), blocks_of(own, part))
    return dataclasses.replace(run, model=model)
