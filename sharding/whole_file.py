"""Writing files whole or not at all, and only where a file may be."""

from __future__ import annotations

import contextlib
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import BinaryIO

from sharding.errors import UserError
from sharding.paths import check_local


def check_place(path: pathlib.Path, what: str = "") -> None:
    """Refuses to write over what is no plain file: a device, a pipe, a socket, a folder.

    A link is judged by what it leads to.

    Args:
      path: that is to be written.
      what: the flag that names it, for the message, such as "--out".

    Raises:
      UserError: it is there and is no plain file, or it is an address and no path.
    """
    check_local(path, what)
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # a new name; or one that cannot be written, which the writing will tell
    if not stat.S_ISREG(mode):
        shown = f"{what}={path}" if what else str(path)
        raise UserError(f"{shown} is {_kind(mode)}, not a file: name another")


def write_named(path: pathlib.Path, text: str, what: str = "") -> None:
    """Writes a file that a person has named, whole or not at all.

    Args:
      path: the file.
      text: what it shall hold.
      what: the flag that names it, for the message.

    Raises:
      UserError: it is there and is no plain file, or it cannot be written.
    """
    check_place(path, what)
    try:
        write_atomically(path, text)
    except OSError as error:
        mend = f"name another with {what}" if what else "name another"
        raise UserError(f"cannot write {path} ({error.strerror}): {mend}") from error


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
    }
    return next((word for test, word in kinds.items() if test(mode)), "a device")


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of `path` if the block succeeds.

    Raises:
      UserError: `path`, or the name that the new file has meanwhile, is there and no plain file.
      OSError: it cannot be written; the error names it.
    """
    partial = path.with_name(path.name + ".partial")
    check_place(path)
    check_place(partial)
    try:
        with partial.open("wb") as file:
            yield file
        os.replace(partial, path)
    except OSError as error:
        _name(error, path)
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def append(path: pathlib.Path, data: bytes) -> None:
    """Adds to the end of a file, all of it or nothing; makes the file.

    Raises:
      UserError: `path` is there and is no plain file.
      OSError: it cannot be written; the error names it.
    """
    check_place(path)
    try:
        with path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        _name(error, path)
        raise


def free_name(path: pathlib.Path) -> pathlib.Path:
    """The path itself, or with -2, -3, ... behind it: the first of them that is not there."""
    found, count = path, 1
    while os.path.lexists(found):
        count += 1
        found = path.with_name(f"{path.name}-{count}")
    return found


def _name(error: OSError, path: pathlib.Path) -> None:
    """Puts the name of the file into an error: a failed write does not tell it."""
    if error.filename is None:
        error.filename = str(path)


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Replaces a file whole or not at all, as UTF-8; see `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())
