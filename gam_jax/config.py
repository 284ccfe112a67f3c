"""Frozen dataclasses to plain dicts and back, with errors that name the field."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from gam_jax.layers import LAYERS, Layer
from sharding.errors import UserError

T = TypeVar("T")

LAYER_KEY = "layer"
"""In a dict, the key that names a layer's class."""


def to_dict(config: Any) -> dict[str, Any]:
    """A frozen dataclass as nested dicts of JSON values.

    A layer says its class under "layer". What it inherits (see `layers.base.INHERITED`) is what
    the dataclass around it says, so equal values are left out.
    """
    return _to_dict(config, {})


def _to_dict(config: Any, around: Mapping[str, Any]) -> dict[str, Any]:
    inherited = {**around, **_inheritable(config)}
    result: dict[str, Any] = {}
    if type(config).__name__ in LAYERS:
        result[LAYER_KEY] = type(config).__name__
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            result[field.name] = _to_dict(value, inherited)
        elif field.name not in around or value != around[field.name]:
            result[field.name] = value
    return result


def _inheritable(config: Any) -> dict[str, Any]:
    from gam_jax.layers.base import INHERITED

    return {name: getattr(config, name) for name in INHERITED if hasattr(config, name)}


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """The inverse of `to_dict`.

    Raises:
      UserError: an unknown field (with the nearest valid one), a value of the wrong type, an
        unknown layer, or a value that the dataclass itself refuses.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: expected fields of {cls.__name__}, got {values!r}")
    if cls is Layer or LAYER_KEY in values:
        name = values.get(LAYER_KEY)
        if name not in LAYERS:
            raise UserError(f"{where}.{LAYER_KEY}: {unknown(name, LAYERS, 'layer')}")
        cls = LAYERS[name]  # type: ignore[assignment]
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    kwargs = {}
    for name, value in values.items():
        if name == LAYER_KEY:
            continue
        if name not in fields:
            raise UserError(f"{where}.{name}: {unknown(name, fields, 'field')}")
        kwargs[name] = _field(hints[name], value, f"{where}.{name}")
    try:
        return cls(**kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def _field(hint: Any, value: Any, where: str) -> Any:
    if hint is Layer or dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed and type(value) is int:
        return float(value)
    if type(value) in allowed or (value is None and types.NoneType in allowed):
        return value
    names = " or ".join("none" if t is types.NoneType else t.__name__ for t in allowed)
    raise UserError(f"{where}: expected {names}, got {value!r}")


def unknown(name: object, valid: Iterable[str], what: str) -> str:
    """The message for a name that is not among the valid ones: it gives the nearest."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(names)}"
    return f"unknown {what} '{name}'; {hint}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
