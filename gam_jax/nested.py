"""Dataclasses that others hold in their fields, alone or in tuples: layers in models, say."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def held(config: Any) -> Iterator[Any]:
    """The dataclasses that the fields of one hold; of a tuple each."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(one):
                yield one


def with_held(config: T, change: Callable[[Any], Any], **fields: Any) -> T:
    """A dataclass in which each that it holds is changed.

    Args:
      config: a frozen dataclass.
      change: of each that it holds; of a tuple each.
      fields: further fields, and their new values.

    Returns:
      `config` itself where nothing is another.
    """

    def changed(value: Any) -> Any:
        if isinstance(value, tuple):
            each = tuple(map(changed, value))
            return value if all(map(operator.is_, each, value)) else each
        return change(value) if dataclasses.is_dataclass(value) else value

    found = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    new = {name: changed(value) for name, value in found.items()} | fields
    new = {name: value for name, value in new.items() if value is not found[name]}
    return dataclasses.replace(config, **new) if new else config  # type: ignore[type-var]
