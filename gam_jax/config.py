"""Frozen dataclasses to plain dicts and back, with errors that name the field."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from sharding.bounds import check_bounds
from sharding.errors import UserError

T = TypeVar("T")

LAYER_KEY = "layer"
"""In a dict, the key that names a layer's class."""
MODEL_KEY = "class"
"""The key that names a model's class: no field can have that name."""


def to_dict(config: Any) -> dict[str, Any]:
    """A frozen dataclass as nested dicts of JSON values.

    A layer says its class under "layer", a model under "class". What a layer inherits (see
    `layers.base.INHERITED`) is what the dataclass around it says, so equal values are left out.

    Raises:
      UserError: a layer, model or data of a class that is not registered.
    """
    return _to_dict(config, {})


def _to_dict(config: Any, around: Mapping[str, Any]) -> dict[str, Any]:
    inherited = {**around, **_inheritable(config)}
    result: dict[str, Any] = {}
    for kind in _kinds():
        if isinstance(config, kind.base):
            name = kind.name_of(config)
            if kind.table.get(name) is not type(config):
                raise UserError(
                    f"{type(config).__name__} is not registered: put register("
                    f"{type(config).__name__}) below the class"
                )
            if kind.key:
                result[kind.key] = name
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            result[field.name] = _to_dict(value, inherited)
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            result[field.name] = [_to_dict(each, inherited) for each in value]
        elif field.name not in around or value != around[field.name]:
            result[field.name] = list(value) if isinstance(value, tuple) else value
    return result


def _inheritable(config: Any) -> dict[str, Any]:
    from gam_jax.layers.base import INHERITED

    return {name: getattr(config, name) for name in INHERITED if hasattr(config, name)}


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A base class whose subclasses are found by a name in their dict.

    Attributes:
      base: Layer, Model or Data.
      table: name -> class.
      key: of the dict, where the class has a key of its own; data are told by their `name`.
      word: for messages.
      default: the class where the key is missing; none if it may not be.
    """

    base: type
    table: Mapping[str, type]
    key: str
    word: str
    default: str = ""

    def name_of(self, config: Any) -> str:
        """Under which name its class is registered."""
        return type(config).__name__ if self.key else str(config.name).partition(":")[0]

    def name_in(self, values: Mapping[str, Any]) -> Any:
        """The name that a dict gives."""
        if self.key:
            return values.get(self.key, self.default or None)
        return str(values.get("name", self.default)).partition(":")[0]


def _kinds() -> tuple[_Kind, ...]:
    from gam_jax.data import DATA, Data
    from gam_jax.layers import LAYERS, Layer
    from gam_jax.models import MODELS, Model

    return (
        _Kind(Layer, LAYERS, LAYER_KEY, "layer"),
        _Kind(Model, MODELS, MODEL_KEY, "model", "LanguageModel"),
        _Kind(Data, DATA, "", "data set", "python_stdlib"),
    )


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """The inverse of `to_dict`.

    Raises:
      UserError: an unknown field (with the nearest valid one), a value of the wrong type, an
        unknown class, or a value that the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected fields of {cls.__name__}, got {values!r}")
    cls = _class_of(cls, values, where)
    values = getattr(cls, "from_saved", dict)(values)  # of fields that had other names
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    kwargs = {}
    for name, value in values.items():
        if name in (LAYER_KEY, MODEL_KEY) and name not in fields:
            continue
        if name not in fields:
            raise UserError(f"{where}.{name}: {unknown(name, fields, 'field')}")
        kwargs[name] = _field(hints[name], value, f"{where}.{name}")
    try:
        made = cls(**kwargs)
        check_bounds(made)  # of a class with a `__post_init__` of its own that forgets it
        return made
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{where}: {error}") from error


def _class_of(cls: type[T], values: Mapping[str, Any], where: str) -> type[T]:
    """The class that a dict names; `cls` itself where it is no layer, model or data."""
    for kind in _kinds():
        if not (
            issubclass(cls, kind.base)
            or (kind.key == LAYER_KEY and isinstance(values.get(LAYER_KEY), str))
        ):
            continue
        if kind.key and kind.key not in values and cls is not kind.base:
            return cls
        name = kind.name_in(values)
        if not isinstance(name, str) or name not in kind.table:
            entry = f"{where}.{kind.key or 'name'}"
            raise UserError(
                f"{entry}: {unknown(name, kind.table, kind.word)}; a class of your own must be "
                f"registered: give the file that does so, as --config=FILE.py"
            )
        return kind.table[name]
    return cls


def _field(hint: Any, value: Any, where: str) -> Any:
    if isinstance(hint, type) and (_named(hint) or dataclasses.is_dataclass(hint)):
        return from_dict(hint, value, where)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        inner, _ = typing.get_args(hint)
        return tuple(_field(inner, each, f"{where}[{i}]") for i, each in enumerate(value))
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    allowed = typing.get_args(hint) if union else (hint,)
    for part in allowed if union and isinstance(value, Mapping) else ():
        if dataclasses.is_dataclass(part):
            return from_dict(part, value, where)  # type: ignore[arg-type]
    if float in allowed and type(value) is int and abs(value) < 2**1000:  # others do not fit
        return float(value)
    if type(value) in allowed or (value is None and types.NoneType in allowed):
        return value
    names = " or ".join("none" if t is types.NoneType else _shown(t) for t in allowed)
    raise UserError(f"{where}: expected {names}, got {value!r}")


def set_value(values: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of what `to_dict` gives, with another value at a path such as model.block.mixer.

    Raises:
      UserError: the path goes through what holds no fields.
    """
    name, _, rest = path.partition(".")
    changed = dict(values)
    if not rest:
        return {**changed, name: value}
    inner = changed.get(name)
    if isinstance(inner, list):
        number, _, rest = rest.partition(".")
        each = _numbered(inner, number, path)
        value = set_value(each, rest, value) if rest else value
        own = [*inner]
        own[int(number)] = value
        return {**changed, name: own}
    if not isinstance(inner, Mapping):
        raise UserError(f"{path}: {name} holds no fields")
    return {**changed, name: set_value(inner, rest, value)}


def check_value(
    cls: type, values: Mapping[str, Any], path: str, value: Any, where: str = "config"
) -> None:
    """Refuses a path that a configuration does not have, or a value that it cannot hold.

    Args:
      cls: of the configuration.
      values: what `to_dict` gives of it.
      path: of a field, as model.block.mixer.
      value: as `from_dict` takes it.
      where: of the configuration, for the message.

    Raises:
      UserError: it names the nearest field, or the types of the field.
    """
    cls = _class_of(cls, values, where)
    name, _, rest = path.partition(".")
    hints = typing.get_type_hints(cls)
    fields: set[str] = {field.name for field in dataclasses.fields(cls)}
    if name not in fields:
        raise UserError(f"{where}.{name}: {unknown(name, fields, 'field')}")
    hint, inner, where = hints[name], values.get(name), f"{where}.{name}"
    if rest and isinstance(inner, list):
        number, _, rest = rest.partition(".")
        inner, where = _numbered(inner, number, f"{where}.{number}"), f"{where}.{number}"
        hint = typing.get_args(hint)[0]
    if not rest:
        _field(hint, value, where)
        return
    members = [one for one in (hint, *typing.get_args(hint)) if isinstance(one, type)]
    kinds = [one for one in members if _named(one) or dataclasses.is_dataclass(one)]
    if not kinds or not isinstance(inner, Mapping):
        raise UserError(f"{where} holds no fields, so there is no {rest}")
    check_value(kinds[0], inner, rest, value, where)


def _numbered(values: list[Any], number: str, where: str) -> Any:
    if not number.isdecimal() or int(number) >= len(values):
        raise UserError(f"{where}: there are 0 to {len(values) - 1} of them, not '{number}'")
    return values[int(number)]


def _named(hint: type) -> bool:
    return any(issubclass(hint, kind.base) for kind in _kinds())


def _shown(hint: Any) -> str:
    if typing.get_origin(hint) is tuple:
        return f"numbers of {_shown(typing.get_args(hint)[0])}, as (1, 2)"
    return getattr(hint, "__name__", str(hint))


def unknown(name: object, valid: Iterable[str], what: str) -> str:
    """The message for a name that is not among the valid ones: it gives the nearest."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(names)}"
    return f"unknown {what} '{name}'; {hint}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}, and {"a": [{"b": 1}]} as {"a.0.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
            value = {str(number): each for number, each in enumerate(value)}
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
