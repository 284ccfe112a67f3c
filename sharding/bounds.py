"""What numbers a field may hold, said once, as its type: `heads: Size = 4`."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from typing import Annotated, Any

from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Bound:
    """The numbers from `low` to `high`.

    Attributes:
      low, high: both are allowed, unless `open` says otherwise.
      open: the one that is not: "low", "high", or "" for neither.
    """

    low: float = -math.inf
    high: float = math.inf
    open: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number is allowed; NaN never is, nor an infinite one."""
        if not isinstance(value, numbers.Integral) and not math.isfinite(value):
            return False
        if value in (self.low, self.high):
            return value != (self.low if self.open == "low" else self.high) or not self.open
        return self.low < value < self.high

    def allowed(self, value: float) -> str:
        """What is allowed, as the end of a sentence on a value that is not."""
        if not isinstance(value, numbers.Integral) and not math.isfinite(value):
            return "must be finite"
        if self.high < math.inf and self.low > -math.inf and self.high <= 1:
            return f"must be from {self.low:g} to {'below ' * (self.open == 'high')}{self.high:g}"
        if value > self.low and value >= self.high:
            return f"must be at most {self.high}"
        if self.open == "low":
            return f"must be above {self.low:g}"
        return "must not be negative" if self.low == 0 else f"must be at least {self.low:g}"


Size = Annotated[int, Bound(1, 2**31 - 1)]
"""How many there are, where there must be some."""
Few = Annotated[int, Bound(1, 10_000)]
"""How many there are of what is told one by one."""
Count = Annotated[int, Bound(0, 2**53)]
"""How many there are, or 0 for none."""
Seed = Annotated[int, Bound(0, 2**32 - 2)]
"""What random numbers are drawn from. 2^32 - 1 is left to rows that are drawn to be scored."""
Positive = Annotated[float, Bound(0, open="low")]
NotNegative = Annotated[float, Bound(0)]
Share = Annotated[float, Bound(0, 1)]
"""A part of a whole: none of it, or all of it, too."""
Rate = Annotated[float, Bound(0, 1, open="high")]
"""A part of a whole, but never all of it: what is dropped, or an average's memory."""
AtLeastOne = Annotated[float, Bound(1)]
Switch = Annotated[int, Bound(0, 1)]
"""One of two ways, where both are numbers."""
Span = Annotated[float, Bound(0, 2**53)]
"""A part of a whole where it is below 1, else a number of them."""

FINITE = Bound()


def check_bounds(config: Any, name: str = "") -> None:
    """Refuses a dataclass with a number that its field's type does not allow.

    Numbers of fields without bounds must be finite; None is left to whoever reads the field.

    Args:
      config: a dataclass.
      name: of the group of fields, for the message; the class's name if empty.

    Raises:
      UserError: it names field, value and what is allowed.
    """
    bounds = _bounds_of(type(config))
    for field in dataclasses.fields(config):
        kind, bound = bounds.get(field.name, (None, FINITE))
        where, value = f"{name or type(config).__name__}.{field.name}", getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if kind is not None or isinstance(number, numbers.Real):
                _check(where, field.name, number, kind, bound)


def check_number(name: str, value: Any, kind: Any) -> None:
    """Refuses an argument that a type such as `Share` does not allow.

    Raises:
      UserError: it names argument, value and what is allowed.
    """
    _check(name, name.rpartition(".")[2], value, *_bound_of(kind))


def _check(where: str, name: str, value: Any, kind: type | None, bound: Bound) -> None:
    if value is None:
        return
    if not isinstance(value, numbers.Integral if kind is int else numbers.Real):
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"{where}={value!r}: {name} must be {what}")
    number: Any = value
    if not bound.holds(number):
        raise UserError(f"{where}={value}: {name} {bound.allowed(number)}")


def _bounds_of(cls: type) -> dict[str, tuple[type, Bound]]:
    try:
        return _hinted(cls)
    except NameError:  # the types of a class inside a function cannot be looked up
        return {}


@functools.cache
def _hinted(cls: type) -> dict[str, tuple[type, Bound]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    found = {name: _bound_of(hint) for name, hint in hints.items()}
    return {name: each for name, each in found.items() if each[0] is not None}


def _bound_of(hint: Any) -> tuple[Any, Bound]:
    """The type and bounds of `Size`, of `Size | None`, or of each number of `tuple[Size, ...]`.

    No type where it is no number, and where a tuple's are unlike.
    """
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    for part in typing.get_args(hint) if union else (hint,):
        if typing.get_origin(part) is tuple:
            inside = {arg for arg in typing.get_args(part) if arg is not Ellipsis}
            number = inside.pop() if len(inside) == 1 else None
            if typing.get_origin(number) is not tuple and (found := _bound_of(number))[0]:
                return found
        if typing.get_origin(part) is Annotated:
            kind, *rest = typing.get_args(part)
            for bound in rest:
                if isinstance(bound, Bound):
                    return kind, bound
        if part in (int, float):
            return part, FINITE
    return None, FINITE
