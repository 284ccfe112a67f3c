"""The fields of a config.json: what was asked for is remembered, the rest must be harmless."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sharding.errors import UserError

MOST = 2**31 - 1
"""The largest size: positions are int32."""
LAYERS = 10_000
"""More than any model has, of what is told one by one."""
LARGEST = 1e30
"""Of other numbers: the square of no such number is lost, in Python's arithmetic."""
QUANTIZED = ("quantization_config", "compression_config")

NEEDED: Any = object()
"""The default of a field that must be given."""
_SHOWN = 60


class Fields(Mapping[str, Any]):
    """The fields of a JSON object, such as a config.json. A field that is null is not given.

    Args:
      values: the object.
      inside: the names of the fields around it, each with a dot behind it.
      file: where it stands, for messages.
    """

    def __init__(
        self, values: Mapping[str, Any], inside: str = "", file: str = "config.json"
    ) -> None:
        self._values, self._inside, self._file = values, inside, file
        self._asked: set[str] = set()
        self._parts: dict[str, Fields] = {}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Fields:
        """`values` themselves if they are fields already."""
        return values if isinstance(values, Fields) else cls(values)

    def __getitem__(self, name: str) -> Any:
        self._asked.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def size(self, name: str, default: Any = NEEDED, least: int = 1, most: int = MOST) -> Any:
        """A whole number from `least` to `most`."""
        value = self._given(name, default)
        if self.get(name) is None:
            return value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.refused(name, f"is no whole number from {least} to {most}")
        return value

    def number(
        self,
        name: str,
        default: Any = NEEDED,
        *,
        least: float = -LARGEST,
        above: float = -math.inf,
    ) -> Any:
        """A finite number of at least `least` and more than `above`, as a float."""
        value = self._given(name, default)
        if self.get(name) is None:
            return value
        if not is_number(value) or value < least or value <= above:
            limits = f" above {above:g}" if above > -math.inf else ""
            limits += f" of at least {least:g}" if least > -LARGEST else ""
            raise self.refused(name, f"is no number{limits} of the sizes that models have")
        return float(value)

    def is_null(self, name: str) -> bool:
        """Whether it is given as null, where that is not the same as not at all."""
        return name in self and self[name] is None

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """A list of so many finite numbers; ones if it is not given."""
        value = self.get(name)
        if value is None:
            return (1.0,) * count
        if not isinstance(value, list | tuple) or len(value) != count:
            raise self.refused(name, f"is no list of {count} numbers")
        if not all(map(is_number, value)):
            raise self.refused(name, f"is no list of {count} numbers of the sizes that models have")
        return tuple(map(float, value))

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self._given(name, default)
        if not isinstance(value, bool):
            raise self.refused(name, "is neither true nor false")
        return value

    def part(self, name: str) -> Fields:
        """The fields of an object inside; of an empty one if it is not given."""
        if name not in self._parts:
            value = self.get(name)
            if value is not None and not isinstance(value, Mapping):
                raise self.refused(name, "is no object")
            self._parts[name] = Fields(value or {}, f"{self._inside}{name}.", self._file)
        return self._parts[name]

    def only(self, name: str, *values: Any) -> None:
        """A UserError if the field is given and is none of the values that are known here."""
        found = self.get(name)
        if found is not None and not any(_same(found, value) for value in values):
            raise self.refused(name, f"is not known here, {' or '.join(map(repr, values))} alone")

    def refused(self, name: str, why: str) -> UserError:
        """The error that names a field and its value."""
        kind = self._values.get("model_type")
        known = isinstance(kind, str) and kind.isidentifier() and name != "model_type"
        of = f" of model_type {kind}" if known else ""
        return UserError(
            f"{self._file}: {self._inside}{shown(name, self._values.get(name))}{of} {why}"
        )

    def refuse_quantized(self, known: Iterable[str] = ()) -> None:
        """A UserError if the weights are said to be quantized by a method that is not known."""
        for name in QUANTIZED:
            found = self.get(name)
            if found is None:
                continue
            said = found if isinstance(found, Mapping) else {}
            kind = said.get("quant_method", said.get("quant_type", found))
            if name == QUANTIZED[0] and isinstance(kind, str) and kind in known:
                continue
            raise UserError(
                f"{self._file}: {name} says that the weights are quantized ({_short(kind)}), which "
                f"is not read here: save the model in float32, float16 or bfloat16"
            )

    def check_all_used(self, harmless: Iterable[str], neutral: Mapping[str, Any]) -> None:
        """A UserError for the first field that nobody asked for and that may change the model.

        Args:
          harmless: fields that change nothing here, whatever their value.
          neutral: fields that change nothing while they have this value.
        """
        for name, value in self._values.items():
            if name in self._parts:
                self._parts[name].check_all_used((), neutral)
            elif not (
                value is None
                or name in self._asked
                or name in harmless
                or (name in neutral and _same(value, neutral[name]))
            ):
                raise self.refused(
                    name,
                    "is a field that is not known here, and that may change what the model "
                    f"computes: if it changes nothing, take it out of {self._file}",
                )

    def _given(self, name: str, default: Any) -> Any:
        value = self.get(name)
        if value is not None:
            return value
        if default is NEEDED:
            raise UserError(f"{self._file} has no {self._inside}{name}, which its model needs")
        return default


def is_number(value: Any) -> bool:
    """Whether it is a number, no boolean, and not beyond `LARGEST`; infinity and NaN are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -LARGEST <= value <= LARGEST


def shown(name: str, value: Any) -> str:
    """name=value on one line, cut short."""
    plain = re.fullmatch(r"[\w.-]{1,80}", name, re.ASCII)
    return f"{name if plain else _short(name)}={_short(value)}"


def _short(value: Any) -> str:
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # nested too deep, or an integer of too many digits
        text = f"({type(value).__name__})"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _same(found: Any, value: Any) -> bool:
    """Equal, and both of them booleans, numbers, or of one type."""
    return found == value and isinstance(found, bool) == isinstance(value, bool)
