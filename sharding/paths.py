"""The one door for paths that a person gives: what is no local path is refused in one line."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

from sharding.errors import UserError

MAX_NAME, MAX_PATH = 255, 4096
"""Bytes of a name, and of a path, on every file system of Linux."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?=/)")
"""`gs:` before a slash: pathlib makes `gs:/bucket` of `gs://bucket`."""


def scheme(text: str | os.PathLike[str]) -> str:
    """The scheme of an address such as `gs://bucket/x`; empty for a local path."""
    found = _SCHEME.match(os.fspath(text))
    return found[1] if found else ""


def check_local(path: str | os.PathLike[str], what: str = "") -> None:
    """Refuses an address with a scheme, which would otherwise become a local folder of that name.

    Args:
      path: as it was given, or a Path made of it.
      what: the flag or field that named it, for the message, such as "--run".

    Raises:
      UserError: it has a scheme, is too long, or holds a character that no path may hold.
    """
    text = os.fspath(path)
    shown = f"{what}={text}" if what else text
    if "\0" in text:
        shown = shown.replace("\0", "\\0")
        raise UserError(f"{shown} holds the character 0, which no path may hold: name another")
    try:
        name = max(os.fsencode(text).split(b"/"), key=len)
    except UnicodeEncodeError as error:
        raise UserError(f"{shown!a} holds half a character: name another") from error
    if len(name) > MAX_NAME or len(text) > MAX_PATH:
        raise UserError(f"{shown[:80]}... is longer than a path may be: name another")
    if found := scheme(text):
        raise UserError(
            f"{shown} is no path of a file system: {found}:// is read as text alone "
            f"(data.name=text:...); mount it, or name a local path"
        )


def local_path(text: str | os.PathLike[str], what: str = "") -> pathlib.Path:
    """The path that a person gave, with ~ read as their folder.

    Args:
      text: as it was given.
      what: the flag or field that named it, for the message.

    Raises:
      UserError: as `check_local`; or the home folder that ~NAME asks for is unknown.
    """
    check_local(text, what)
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{what or 'path'}={text}: {str(error).rstrip('.')}: write it out"
        ) from error


@contextlib.contextmanager
def made_folder(folder: pathlib.Path, what: str) -> Iterator[None]:
    """While open, a folder is there; those that were made for it and stay empty are removed.

    Args:
      folder: that is written into.
      what: the flag or field that named it, for the message.

    Raises:
      UserError: it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{what}={folder}: cannot make the folder: {error.strerror}") from error
    try:
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()
