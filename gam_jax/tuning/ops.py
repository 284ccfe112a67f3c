"""What a tunable op is, and what one device of a mesh has of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sharding.errors import UserError

Shape = Mapping[str, Any]
"""Sizes and kinds by name, of what one device has."""
Settings = Mapping[str, Any]
"""Values of fields of a layer, or of a model."""
Arrays = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Op:
    """Something that can be computed in several ways.

    Attributes:
      name: of a `Tunable`, or "blocks".
      shape: see `Shape`.
      dtype: of what it is given.
      own: the settings that its layer has. Ops that differ in these alone are equal.
    """

    name: str
    shape: Shape
    dtype: str
    own: Settings = dataclasses.field(default_factory=dict, compare=False)

    @property
    def shown(self) -> str:
        """In words."""
        return f"{self.name} {' '.join(f'{n}={x}' for n, x in self.shape.items())} {self.dtype}"

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for equal ops: 50 and 50.0 are one number."""
        sizes = {name: _number(value) for name, value in self.shape.items()}
        return self.name, json.dumps(sizes, sort_keys=True), self.dtype


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclasses.dataclass(frozen=True)
class Part:
    """What one device has of a run.

    Attributes:
      rows: of one part of a batch.
      tokens: of a row.
      shared: logical axis, as "heads" -> devices that split it; one where it is not there.
      split: mesh axes of several devices.
    """

    rows: int
    tokens: int
    shared: Mapping[str, int] = dataclasses.field(default_factory=dict)
    split: frozenset[str] = frozenset()

    def devices(self, axis: str) -> int:
        """How many split a logical axis."""
        return self.shared.get(axis, 1)

    def of(self, size: int, axis: str, name: str) -> int:
        """This device's part of an axis.

        Args:
          size: of the whole.
          axis: its logical name.
          name: of the field that tells the size, for the message.

        Raises:
          UserError: the devices do not divide it.
        """
        devices = self.devices(axis)
        if size % devices:
            raise UserError(
                f"{name}={size} cannot be split over {devices} devices: choose a multiple, or "
                f"another --mesh"
            )
        return size // devices


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What `gam tune` is told where no run is given.

    Attributes:
      rows: B.
      tokens: T.
      heads: H.
      size: of a head.
      values: of a head's values in scans.
    """

    rows: int
    tokens: int
    heads: int
    size: int
    values: int

    @property
    def width(self) -> int:
        """Of all heads."""
        return self.heads * self.size


@dataclasses.dataclass(frozen=True)
class Tunable:
    """An op of layers, or of a model, that can be computed in several ways.

    Attributes:
      name: of the op.
      shapes: a class that has it -> (its configuration, a device's part) -> what the op is given
        there; None where that is something else.
      default: the fields that are found, with what they are where nobody says anything.
      ways: (op, backend) -> settings that may be faster.
      call: (shape, settings, backend) -> a function of the arrays; backend None is JAX's default.
      plainest: (shape, arrays...) -> what that function has to give, computed in the plainest way.
      draw: (shape, dtype, key) -> arrays.
      differentiated: gradients by so many first arrays are computed and compared as well.
      examples: a word of `gam tune --ops` -> the shape by sizes.
      words: a field -> the texts that it may hold.
    """

    name: str
    shapes: Mapping[type, Callable[[Any, Part], Shape | None]]
    default: Settings
    ways: Callable[[Op, str], Sequence[Settings]]
    call: Callable[[Shape, Settings, str | None], Callable[..., Any]]
    plainest: Callable[..., Any]
    draw: Callable[[Shape, str, Any], Arrays]
    differentiated: int
    examples: Mapping[str, Callable[[Sizes], Shape]]
    words: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)


def shorter(sizes: Sequence[int], tokens: int) -> list[int]:
    """Sizes of a chunk or block that are not longer than the sequence."""
    return [size for size in sizes if size <= tokens]
