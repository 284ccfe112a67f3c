"""Reading JSON that a person may have made or damaged: one plain line for whatever is wrong."""

from __future__ import annotations

import json
import math
import pathlib
import typing
from typing import Any, TypeVar

from sharding.errors import UserError

T = TypeVar("T")

MAX_BYTES = 256 << 20
"""A larger file is refused unread: none that this project writes comes near."""
MAX_DEPTH = 64
"""Lists and objects inside each other; configurations have about ten."""
KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}


class BadJson(UserError):
    """A file that is not the JSON that was asked for.

    Attributes:
      reason: what is wrong, without the file's name.
    """

    def __init__(self, where: object, reason: str, mend: str = "restore or remove it") -> None:
        super().__init__(f"{where} {reason}: {mend}")
        self.reason = reason


def read_json(
    path: pathlib.Path,
    kind: type = dict,
    mend: str = "restore or remove it",
    max_bytes: int = MAX_BYTES,
    finite: bool = True,
) -> Any:
    """What a JSON file holds.

    Args:
      path: the file.
      kind: what it must hold at the top.
      mend: what a person can do about a bad file, for the message.
      max_bytes: the largest file that is read.
      finite: refuse NaN and infinite numbers, which Python writes but JSON does not know.

    Raises:
      BadJson: not a file, not readable, too large, not UTF-8, not JSON, nested too deeply, a name
        twice in one object, a number that is not finite, or another kind of value at the top.
      FileNotFoundError: there is nothing of that name.
    """
    try:
        if path.exists() and not path.is_file():
            raise BadJson(path, "is not a file", mend)
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadJson(path, f"cannot be read ({error.strerror})", mend) from error
    return parse_json(content, path, kind, mend, max_bytes, finite)


def read_record(path: pathlib.Path, cls: type[T], max_bytes: int = 1 << 16) -> T:
    """A dataclass of texts and numbers that was written as an object of its fields.

    Raises:
      BadJson: as `read_json`; or other fields, or values of other types.
      FileNotFoundError: there is nothing of that name.
    """
    values = read_json(path, max_bytes=max_bytes)
    hints = typing.get_type_hints(cls)
    for name, value in values.items():
        wanted = (int, float) if hints.get(name) is float else (hints.get(name),)
        if type(value) not in wanted:
            raise BadJson(path, f"has a field {name[:60]!r} that is no {cls.__name__}'s")
    try:
        return cls(**values)
    except TypeError as error:
        raise BadJson(path, f"lacks fields of a {cls.__name__}") from error


def parse_json(
    content: bytes | str,
    where: object,
    kind: type = dict,
    mend: str = "restore or remove it",
    max_bytes: int = MAX_BYTES,
    finite: bool = True,
) -> Any:
    """As `read_json`, of what was read already; `where` says of what."""
    if len(content) > max_bytes:
        raise BadJson(where, f"is larger than {max_bytes:,} bytes", mend)
    try:
        text = content.decode() if isinstance(content, bytes) else content
        found = json.loads(text, object_pairs_hook=_each_once)
        _check(found, finite)
    except UnicodeError as error:
        raise BadJson(where, f"is not UTF-8 ({_plain(error)})", mend) from error
    except RecursionError as error:
        raise BadJson(where, f"is nested deeper than {MAX_DEPTH} levels", mend) from error
    except ValueError as error:
        raise BadJson(where, f"is not JSON ({_plain(error)})", mend) from error
    if not isinstance(found, kind) or isinstance(found, bool):
        raise BadJson(where, f"holds {_shown(found)}, not {KINDS[kind]}", mend)
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names {twice[:60]!r} twice")
    return found


def _check(found: Any, finite: bool) -> None:
    """Walks level by level, so that nothing is too deep for the walk itself."""
    level = [found]
    for depth in range(MAX_DEPTH + 1):
        inside: list[Any] = []
        for value in level:
            if isinstance(value, float) and finite and not math.isfinite(value):
                raise ValueError(f"{value} is no number of JSON")
            if isinstance(value, str):
                value.encode()  # half a surrogate pair could never be printed or written
            elif isinstance(value, dict | list) and depth == MAX_DEPTH:
                raise RecursionError
            elif isinstance(value, dict):
                inside += value.keys()
                inside += value.values()
            elif isinstance(value, list):
                inside += value
        if not inside:
            return
        level = inside


def _plain(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _shown(found: Any) -> str:
    return KINDS.get(type(found), "null" if found is None else repr(found)[:40])
