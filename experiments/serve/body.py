"""Bodies of requests as a person sends them, each field looked at and bounded."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from experiments.serve.refusal import Refused, wrong
from gam_jax.config import unknown
from sharding.errors import UserError
from sharding.json_file import parse_json

MOST_BYTES = 8 * 2**20
"""Of a body."""


class Body:
    """The fields of a JSON object; a field that is null counts as left out.

    Args:
      content: of the request.
      names: of the fields that are understood.

    Raises:
      Refused: no JSON object, or a field that is not understood; the message has the nearest.
    """

    def __init__(self, content: bytes, names: Iterable[str]) -> None:
        try:
            given = parse_json(content, "the body", mend="send a JSON object", max_bytes=MOST_BYTES)
        except UserError as error:
            raise Refused(400, str(error)) from error
        for name in given:
            if name not in (known := set(names)):
                raise Refused(400, unknown(name, known, "field"), name, "unknown_field")
        self._given = {name: value for name, value in given.items() if value is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def get(self, name: str, default: Any = None) -> Any:
        """What was sent."""
        return self._given.get(name, default)

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """A number within bounds."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong(name, f"give a number from {least:g} to {most:g}, not {_shown(value)}")
        if not (math.isfinite(value) and least <= value <= most):
            raise wrong(name, f"{value} is not from {least:g} to {most:g}")
        return float(value)

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        """A whole number within bounds."""
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong(name, f"give a whole number from {least} to {most}, not {_shown(value)}")
        if not least <= value <= most:
            raise wrong(name, f"{value} is not from {least} to {most}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise wrong(name, f"give true or false, not {_shown(value)}")
        return value

    def text(self, name: str, default: str, most: int) -> str:
        """A text of at most so many characters."""
        return check_text(name, self.get(name, default), most)

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """A text or a list of texts, at most so many of at most so many characters."""
        value = self.get(name, [])
        many = [value] if isinstance(value, str) else value
        if not isinstance(many, list) or len(many) > most:
            raise wrong(name, f"give a text, or a list of at most {most}")
        return tuple(check_text(name, one, longest, empty=False) for one in many)

    def object(self, name: str, fields: Iterable[str]) -> dict[str, Any]:
        """An object of fields that are understood; empty if it was left out."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise wrong(name, f"give an object, not {_shown(value)}")
        for own in value:
            if own not in (known := set(fields)):
                raise wrong(name, unknown(own, known, "field"))
        return value


def check_text(name: str, value: Any, most: int, empty: bool = True) -> str:
    """A text of bounded length."""
    if not isinstance(value, str):
        raise wrong(name, f"give a text, not {_shown(value)}")
    if len(value) > most:
        raise wrong(name, f"{len(value)} characters are more than {most}")
    if not empty and not value:
        raise wrong(name, "give at least one character, or leave it out")
    return value


def _shown(value: Any) -> str:
    return f"'{value[:40]}'" if isinstance(value, str) else str(value)[:40]
