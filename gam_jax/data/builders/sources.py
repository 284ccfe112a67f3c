"""The files that `text:PATH` means, wherever they are, and those that are left out."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterable
from typing import BinaryIO, NamedTuple

from sharding.errors import UserError

SHOWN = 3
"""Names of each kind of what is left out that are told."""


class Source(NamedTuple):
    """A file that can be opened.

    Attributes:
      name: relative to what was given, with slashes.
      where: it is, for messages.
      open: opens it for reading bytes, from its start.
    """

    name: str
    where: str
    open: Callable[[], BinaryIO]


@dataclasses.dataclass
class Found:
    """What stands at a path.

    Attributes:
      sources: files, by name.
      left_out: reason -> names of what is not read.
    """

    sources: list[Source] = dataclasses.field(default_factory=list)
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def leave_out(self, name: str, why: str) -> None:
        """Notes that something is not read."""
        self.left_out.setdefault(why, []).append(name)

    def told(self) -> str:
        """What is left out, with counts and a few names; empty if nothing is."""
        kinds = [f"{len(names)} {why} ({_few(names)})" for why, names in self.left_out.items()]
        return ", ".join(kinds)


def printable(name: str) -> str:
    """A name on one line, in UTF-8: control characters and stray bytes are written as escapes."""
    plain = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)


def _few(names: Iterable[str]) -> str:
    shown = sorted(map(printable, names))
    return ", ".join([*shown[:SHOWN], *(["..."] if len(shown) > SHOWN else [])])


class Hashed(io.RawIOBase):
    """The bytes of a file, hashed as they are read.

    Args:
      file: opened at its start.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills the buffer, as RawIOBase asks for."""
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._digest.update(data)
        return len(data)

    def digest(self) -> str:
        """SHA-256 of the whole file: what has not been read yet is read now."""
        while data := self._file.read(1 << 20):
            self._digest.update(data)
        return self._digest.hexdigest()


def digest_and_size(source: Source) -> tuple[str, int]:
    """SHA-256 and size of a file.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with source.open() as file:
            digest, size = hashlib.sha256(), 0
            while data := file.read(1 << 20):
                digest.update(data)
                size += len(data)
    except OSError as error:
        raise cannot_read(source.where, error) from error
    return digest.hexdigest(), size


def cannot_read(where: str, error: OSError) -> UserError:
    """The error for a file that the system does not give."""
    reason = error.strerror or " ".join(str(error).split())[:120] or type(error).__name__
    return UserError(f"cannot read {where}: {reason}; mend its permissions or leave it out")


def changed(where: str) -> UserError:
    """The error for a file whose bytes are not those that were hashed."""
    return UserError(f"{where} changed while it was read: start again when nobody writes to it")
