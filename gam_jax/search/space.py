"""What is searched: a configuration, and the values that some of its fields may take."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from gam_jax.config import check_value, from_dict, set_value, to_dict, unknown
from sharding.errors import UserError

Point = tuple[int, ...]
"""A candidate: for each choice, the number of its value."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """One thing that is decided.

    Attributes:
      path: of a field, as `model.block.mixer`; any name where the space has no base.
      values: what it may be, as JSON has it; a layer is a mapping with its class under "layer".
    """

    path: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.path or not self.values:
            raise UserError(f"choice '{self.path}': give a path and at least one value")
        told = [_json(value, f"choice '{self.path}'") for value in self.values]
        if len(set(told)) < len(told):
            twice = next(one for one in told if told.count(one) > 1)
            raise UserError(f"choice '{self.path}': {twice} is there twice")


@dataclasses.dataclass(frozen=True)
class Space:
    """All candidates: one value for each choice.

    Attributes:
      choices: what is decided.
      base: a frozen dataclass, of which candidates are copies with other values; None where
        candidates are no configurations.

    Raises:
      UserError: no choices, a path twice, a path that the base does not have, or a value that its
        field cannot hold.
    """

    choices: tuple[Choice, ...]
    base: Any = None

    def __post_init__(self) -> None:
        paths = [choice.path for choice in self.choices]
        if not paths:
            raise UserError("a space needs at least one choice")
        for path in paths:
            if paths.count(path) > 1:
                raise UserError(f"space: '{path}' is chosen twice: put all values into one list")
        if self.base is not None:
            for choice in self.choices:
                self._check(choice)

    def _check(self, choice: Choice) -> None:
        """A field that another choice brings, as those of a layer, may be there with it alone."""
        around = [other for other in self.choices if choice.path.startswith(f"{other.path}.")]
        plain = to_dict(self.base)
        bases = [plain]
        for other in around:
            bases += [set_value(plain, other.path, value) for value in other.values]
        for value in choice.values:
            errors = [error for base in bases if (error := self._refusal(base, choice.path, value))]
            if len(errors) == len(bases):
                raise UserError(f"space: {errors[0]}")

    def _refusal(self, base: Mapping[str, Any], path: str, value: Any) -> str:
        try:
            check_value(type(self.base), base, path, value)
        except UserError as error:
            return str(error)
        return ""

    @classmethod
    def of(cls, values: Mapping[str, Sequence[Any]], base: Any = None) -> Space:
        """From paths and their values.

        Args:
          values: path -> what it may be.
          base: see `Space`.
        """
        for path, own in values.items():
            if isinstance(own, str) or not isinstance(own, Sequence):
                raise UserError(f"space: '{path}' needs a list of values, got {own!r}")
        choices = tuple(Choice(path, tuple(own)) for path, own in values.items())
        return cls(choices, base)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each choice has."""
        return tuple(len(choice.values) for choice in self.choices)

    @property
    def size(self) -> int:
        """How many points there are."""
        return math.prod(self.sizes)

    def points(self) -> Iterator[Point]:
        """Every point, the last choice the fastest."""
        return (self.point(number) for number in range(self.size))

    def point(self, number: int) -> Point:
        """The point of that number in the order of `points`."""
        found = []
        for size in reversed(self.sizes):
            number, index = divmod(number, size)
            found.append(index)
        return tuple(reversed(found))

    def number(self, point: Point) -> int:
        """The inverse of `point`."""
        found = 0
        for index, size in zip(point, self.sizes, strict=True):
            found = found * size + index
        return found

    def sample(self, random: np.random.Generator) -> Point:
        """A point, each value of a choice as likely as any other."""
        return tuple(int(random.integers(size)) for size in self.sizes)

    def neighbours(self, point: Point) -> Iterator[Point]:
        """Every point that differs from it in one choice."""
        for place, size in enumerate(self.sizes):
            for index in range(size):
                if index != point[place]:
                    yield (*point[:place], index, *point[place + 1 :])

    def one_hot(self, points: Sequence[Point]) -> Float[np.ndarray, "N V"]:
        """For every value of every choice, 1 where a point has it; V is the sum of `sizes`."""
        starts = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        code = np.zeros((len(points), sum(self.sizes)))
        for row, point in enumerate(points):
            code[row, starts + np.asarray(point)] = 1
        return code

    def values(self, point: Point) -> dict[str, Any]:
        """Path -> value."""
        return {
            choice.path: choice.values[index]
            for choice, index in zip(self.choices, point, strict=True)
        }

    def point_of(self, values: Mapping[str, Any]) -> Point:
        """The inverse of `values`.

        Raises:
          UserError: a path or a value that is no choice.
        """
        for path in values:
            if path not in (paths := [choice.path for choice in self.choices]):
                raise UserError(f"space: {unknown(path, paths, 'path')}")
        return tuple(self._index(choice, values) for choice in self.choices)

    def _index(self, choice: Choice, values: Mapping[str, Any]) -> int:
        if choice.path not in values:
            raise UserError(f"space: a candidate needs a value for '{choice.path}'")
        own = json.dumps(values[choice.path], sort_keys=True)
        told = [json.dumps(value, sort_keys=True) for value in choice.values]
        if own not in told:
            raise UserError(f"space: {choice.path}={own[:80]} is none of its {len(told)} values")
        return told.index(own)

    def config(self, point: Point) -> Any:
        """The candidate: the base with a point's values; `values` where there is no base.

        Raises:
          UserError: the configuration refuses them.
        """
        if self.base is None:
            return self.values(point)
        return from_dict(type(self.base), self._changed(point))

    def _changed(self, point: Point) -> dict[str, Any]:
        """Values as a dict; what holds others is set before them."""
        found = to_dict(self.base)
        for path, value in sorted(self.values(point).items(), key=lambda each: len(each[0])):
            found = set_value(found, path, value)
        return found

    def key(self, point: Point) -> str:
        """Equal for equal candidates, whichever points they are of."""
        try:
            made = self.config(point)
            found = made if self.base is None else to_dict(made)
        except UserError:
            found = self._changed(point)
        return json.dumps(found, sort_keys=True)

    def to_json(self) -> dict[str, list[Any]]:
        """Path -> values; without the base."""
        return {choice.path: list(choice.values) for choice in self.choices}

    @classmethod
    def from_json(cls, found: Any, base: Any = None) -> Space:
        """The inverse of `to_json`.

        Raises:
          UserError: no mapping of paths to lists; see also `Space`.
        """
        if not isinstance(found, Mapping):
            raise UserError("space: give paths and lists of values, as {'train.batch': [8, 16]}")
        return cls.of(found, base)


def _json(value: Any, where: str) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {value!r} is no JSON value") from error
