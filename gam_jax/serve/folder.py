"""Remembered states in a folder, where they outlive the process."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from gam_jax.data.storage import say, written_whole
from sharding.errors import UserError

SUFFIX = ".carry"
SUM = hashlib.sha256().digest_size

Key = tuple[int, bytes]
"""How many tokens were read, and a hash of them."""


class Tally(collections.Counter[int]):
    """Counts, without those that are 0."""

    def less(self, items: Iterable[int]) -> None:
        """Counts one less of each."""
        for item in items:
            self[item] -= 1
            if not self[item]:
                del self[item]


class Folder:
    """Files named by their keys, each behind its checksum; the least recently used go first.

    Args:
      path: of the folder; None for one that keeps nothing.
      size: bytes of all files.

    Attributes:
      lengths: how many files there are of each number of tokens.
    """

    def __init__(self, path: Path | None, size: int) -> None:
        self._path, self._size = path, size
        self._files: collections.OrderedDict[Key, int] = collections.OrderedDict()
        self._bytes, self.lengths = 0, Tally()
        for key, count in _files_in(path) if path is not None else ():
            self._add(key, count)
        self._trim()

    def __contains__(self, key: Key) -> bool:
        return key in self._files

    def __iter__(self) -> Iterator[Key]:
        return iter(self._files)

    @property
    def keeps(self) -> bool:
        """Whether anything can be written."""
        return self._path is not None

    def write(self, key: Key, data: bytes) -> bool:
        """Writes a file, unless it is too large; whether it was written.

        Where the folder cannot be written, that is said once, and it keeps nothing from then on.
        """
        size = len(data) + SUM
        if self._path is None or size > self._size:
            return False
        try:
            with written_whole(self._at(self._path, key)) as temporary:
                temporary.write_bytes(hashlib.sha256(data).digest() + data)
        except UserError as error:
            say(f"no more snapshots are written or read: {error}")
            self._path = None
            self._files.clear()
            self.lengths.clear()
            return False
        self._add(key, size)
        self._trim()
        return True

    def read(self, key: Key) -> bytes | None:
        """What was written; None if the file is damaged or gone, and then it is removed."""
        if self._path is None or key not in self._files:
            return None
        content, path = b"", self._at(self._path, key)
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            os.utime(path)
        if hashlib.sha256(content[SUM:]).digest() != content[:SUM]:
            self.remove(key)
            return None
        self._files.move_to_end(key)
        return content[SUM:]

    def remove(self, key: Key) -> None:
        """Removes a file, if there is one."""
        size = self._files.pop(key, None)
        if size is not None and self._path is not None:
            self._bytes -= size
            self.lengths.less([key[0]])
            with contextlib.suppress(OSError):
                self._at(self._path, key).unlink()

    def _add(self, key: Key, size: int) -> None:
        self._files[key] = size
        self._bytes += size
        self.lengths[key[0]] += 1

    def _trim(self) -> None:
        while self._bytes > self._size:
            self.remove(next(iter(self._files)))

    @staticmethod
    def _at(folder: Path, key: Key) -> Path:
        return folder / f"{key[0]}-{key[1].hex()}{SUFFIX}"


def _files_in(folder: Path) -> Iterator[tuple[Key, int]]:
    """Keys and bytes of the files, the least recently used first."""
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        length, _, name = path.name.removesuffix(SUFFIX).partition("-")
        with contextlib.suppress(ValueError, OSError):
            stat = path.stat()
            found.append((stat.st_mtime_ns, (int(length), bytes.fromhex(name)), stat.st_size))
    for _, key, size in sorted(found):
        yield key, size
