"""The files below a folder of this machine, by one rule for folders and globs.

Links are followed, and each real file is read once, under its own name where it has one below the
folder, else under the first name that leads to it. So loops end. What starts with a dot is left
out.
"""

from __future__ import annotations

import fnmatch
import functools
import glob
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from gam_jax.data.builders.sources import Found, Source, cannot_read, printable
from sharding.errors import UserError
from sharding.paths import local_path

HIDDEN = "hidden"
AGAIN = "read under another name"
BROKEN = "broken links"
UNREADABLE = "unreadable"


def find_local(path: str) -> Found:
    """The files that a local path means: one file, those below a folder, or those of a glob.

    Raises:
      UserError: nothing is there, or what is there is neither file nor folder.
    """
    given = local_path(path, "text")
    try:
        mode = given.stat().st_mode
    except OSError as error:
        if glob.has_magic(path):
            return _matching(given)
        raise _absent(given, path, error) from error
    if stat.S_ISDIR(mode):
        return _Walk(given, lambda name: True, None).found
    if not stat.S_ISREG(mode):
        raise UserError(f"text:{printable(path)} is {_kind(mode)}, not a file: name another")
    return Found([source_of(given.name, given)])


def source_of(name: str, path: Path) -> Source:
    """A local file."""
    return Source(printable(name), printable(str(path)), functools.partial(_opened, path))


def _opened(path: Path) -> BinaryIO:
    return path.open("rb")


def _absent(given: Path, path: str, error: OSError) -> UserError:
    shown = f"text:{printable(path)}"
    if os.path.islink(given):
        return UserError(f"{shown} is a broken link: mend it or name another")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UserError(f"{shown} does not exist: check the path (from {Path.cwd()})")
    return cannot_read(shown, error)


def _matching(given: Path) -> Found:
    plain: list[str] = []
    for part in given.parts:
        if glob.has_magic(part):
            break
        plain.append(part)
    root, parts = Path(*plain), given.parts[len(plain) :]
    depth = None if "**" in parts else len(parts)
    if not root.is_dir():
        return Found()
    return _Walk(root, lambda name: _fits(name.split("/"), parts), depth).found


def _fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a relative path fits a glob, part by part; `**` is any number of parts."""
    if not pattern or not names:
        return not names and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return any(_fits(names[i:], pattern[1:]) for i in range(len(names) + 1))
    return fnmatch.fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


class _Walk:
    """One way through the folders below a root; links wait until all that is real was seen."""

    def __init__(self, root: Path, wanted: Callable[[str], bool], depth: int | None) -> None:
        self.found, self._wanted, self._depth = Found(), wanted, depth
        self._folders: set[tuple[int, int]] = set()
        self._files: set[tuple[int, int]] = set()
        self._links: list[tuple[str, Path]] = []
        self._folder("", root)
        while self._links:
            links, self._links = sorted(self._links), []
            for name, path in links:
                self._entry(name, path)
        self.found.sources.sort(key=lambda source: source.name)

    def _folder(self, name: str, path: Path) -> None:
        """All that is in a folder and the real folders below it."""
        waiting = [(name, path)]
        while waiting:
            name, path = waiting.pop()
            try:
                if not self._first(self._folders, path.stat()):
                    self._say(name, AGAIN)
                    continue
                entries = sorted(os.scandir(path), key=lambda entry: entry.name)
            except OSError:
                self._say(name, UNREADABLE)
                continue
            for entry in entries:
                inner = f"{name}/{entry.name}" if name else entry.name
                if entry.name.startswith("."):
                    self._say(inner, HIDDEN)
                elif entry.is_symlink():
                    self._links.append((inner, Path(entry.path)))
                elif not entry.is_dir():
                    self._entry(inner, Path(entry.path))
                elif self._depth is None or inner.count("/") + 1 < self._depth:
                    waiting.append((inner, Path(entry.path)))

    def _entry(self, name: str, path: Path) -> None:
        """A file, or what a link leads to."""
        try:
            status = path.stat()
        except PermissionError:
            return self._say(name, UNREADABLE)
        except OSError:
            return self._say(name, BROKEN)
        if stat.S_ISDIR(status.st_mode):
            if self._depth is None or name.count("/") + 1 < self._depth:
                self._folder(name, path)
        elif not stat.S_ISREG(status.st_mode):
            self._say(name, f"that are {_kind(status.st_mode)}")
        elif not self._wanted(name):
            pass
        elif not self._first(self._files, status):
            self._say(name, AGAIN)
        elif not os.access(path, os.R_OK):
            self._say(name, UNREADABLE)
        else:
            self.found.sources.append(source_of(name, path))
        return None

    def _say(self, name: str, why: str) -> None:
        if self._wanted(name) or why == UNREADABLE:
            self.found.leave_out(name, why)

    @staticmethod
    def _first(seen: set[tuple[int, int]], status: os.stat_result) -> bool:
        key = (status.st_dev, status.st_ino)
        if key in seen:
            return False
        seen.add(key)
        return True
