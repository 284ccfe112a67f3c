"""Every field of a configuration, with its value and its meaning."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from gam_jax.config import LAYER_KEY, MODEL_KEY, to_dict

ENTRY = re.compile(r"  (\w+(?:, \w+)*): (.*)")
"""A line of "Attributes:" that begins an entry: one name, or several with one meaning."""


class Field(NamedTuple):
    """A field as it is shown.

    Attributes:
      name: dotted, as after --config.
      value: of this configuration.
      meaning: as its dataclass says, on one line.
    """

    name: str
    value: object
    meaning: str


def shown(config: Any) -> str:
    """A line for each field: name=value, and what it means."""
    fields = [(f"{name}={value}", meaning) for name, value, meaning in fields_of(config)]
    wide = max(len(setting) for setting, _ in fields)
    lines = [f"{setting:<{wide}}  {meaning}".rstrip() for setting, meaning in fields]
    return "\n".join(lines)


def fields_of(config: Any) -> list[Field]:
    """The fields of a dataclass and of those in it, as `gam_jax.config.to_dict` names them.

    What a layer inherits unchanged is left out, as there.
    """
    return list(_walk(config, to_dict(config), "", {}))


def meanings(cls: type) -> dict[str, str]:
    """What the docstrings of a dataclass and of its bases say under "Attributes:"."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found.update(_own_meanings(inspect.cleandoc(base.__doc__ or "")))
    return found


def _own_meanings(documentation: str) -> dict[str, str]:
    found: dict[str, str] = {}
    names: list[str] = []
    _, _, section = documentation.partition("Attributes:\n")
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break  # the next section
        if entry := ENTRY.fullmatch(line):
            names = entry[1].split(", ")
            found.update(dict.fromkeys(names, entry[2]))
        else:
            for name in names:
                found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def _walk(
    config: Any, values: Mapping[str, Any], prefix: str, around: Mapping[str, str]
) -> Iterator[Field]:
    means = {**around, **meanings(type(config))}
    for name, value in values.items():
        if name in (LAYER_KEY, MODEL_KEY) and isinstance(value, str):
            yield Field(prefix + name, value, (inspect.getdoc(type(config)) or "").split("\n")[0])
        elif dataclasses.is_dataclass(inner := getattr(config, name)):
            yield from _walk(inner, value, f"{prefix}{name}.", means)
        elif isinstance(inner, tuple) and any(map(dataclasses.is_dataclass, inner)):
            for number, (one, own) in enumerate(zip(inner, value, strict=True)):
                yield from _walk(one, own, f"{prefix}{name}.{number}.", means)
        else:
            yield Field(prefix + name, value, means.get(name, ""))
