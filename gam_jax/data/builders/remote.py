"""Text that is not on a file system, such as `text:s3://bucket/books`, through fsspec."""

from __future__ import annotations

import functools
import glob
from typing import Any, BinaryIO

from gam_jax.data.builders.sources import Found, Source, printable
from gam_jax.data.builders.walk import HIDDEN
from sharding.errors import UserError
from sharding.paths import scheme


def find_remote(address: str) -> Found:
    """The files that an address means: one file, those below a folder, or those of a glob.

    Raises:
      UserError: fsspec or what it needs for this scheme is not installed, or nothing is there.
    """
    shown = f"text:{printable(address)}"
    try:
        import fsspec
    except ImportError as error:
        raise UserError(
            f"{shown}: {scheme(address)}:// is read by fsspec, which is not installed: "
            f"pip install 'gam_jax[remote]'"
        ) from error
    try:
        files, path = fsspec.core.url_to_fs(address)
        return _found(files, path, address)
    except UserError:
        raise
    except Exception as error:  # each kind of store raises its own
        raise _plain(shown, error) from error


def _found(files: Any, path: str, address: str) -> Found:
    found = Found()
    if files.isfile(path):
        return Found([_source(files, path.rpartition("/")[2], path, address)])
    if glob.has_magic(path):
        root, names = path[: _plain_end(path)], files.glob(path)
        names = [name for name in names if files.isfile(name)]
    else:
        root, names = path, files.find(path)
    for name in sorted(names):
        relative = name[len(root) :].lstrip("/") if name.startswith(root) else name.lstrip("/")
        if any(part.startswith(".") for part in relative.split("/")):
            found.leave_out(relative, HIDDEN)
        else:
            found.sources.append(_source(files, relative, name, address))
    if not found.sources and not found.left_out:
        raise UserError(f"text:{printable(address)} does not exist, or holds no file: check it")
    return found


def _plain_end(path: str) -> int:
    """Where the part of a glob ends that has no wildcard, at a slash."""
    parts = path.split("/")
    plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    return len("/".join(parts[:plain]))


def _source(files: Any, name: str, path: str, address: str) -> Source:
    where = printable(f"{scheme(address)}://{path.lstrip('/')}")
    return Source(printable(name), where, functools.partial(_opened, files, path, where))


def _opened(files: Any, path: str, where: str) -> BinaryIO:
    try:
        return files.open(path, "rb")
    except OSError:
        raise
    except Exception as error:
        raise _plain(where, error) from error


def _plain(shown: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return UserError(f"{shown} cannot be read ({reason}): check the address and your access to it")
