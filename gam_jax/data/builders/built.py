"""Data sets that were built: whether their files are those that were written.

The SHA-256 of each file of a set is kept in the data folder, and compared whenever the set is
opened. A set that another program built is taken as it is the first time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tensorflow_datasets as tfds

from gam_jax.data.storage import cached, digest_of, locked, plain_errors, say
from sharding.errors import UserError
from sharding.json_file import BadJson, read_json
from sharding.whole_file import check_place

Builder = TypeVar("Builder", bound=tfds.core.DatasetBuilder)


def own_builder(
    kind: type[Builder], folder: Path, config: Any = None, *, renew: bool = True
) -> Builder:
    """One of our builders, which reads what is built already if that is whole.

    Args:
      kind: its class.
      folder: of the data.
      config: a configuration, or the name of one; None where there are none.
      renew: whether a damaged set is removed, to be built again; else it is an error.

    Raises:
      UserError: the set is damaged, and is not to be built again.
    """
    parts = [] if config is None else [getattr(config, "name", config)]
    target = folder.joinpath(kind.name, *parts, str(kind.VERSION))
    check_whole(folder, target, renew)

    def make() -> Builder:
        return kind(data_dir=folder, **({} if config is None else {"config": config}))

    try:
        return make()
    except Exception as error:  # TensorFlow Datasets reads what is there, and raises anything
        if not target.exists():
            raise
        _damaged(folder, target, _brief(error), renew)
    return make()


def check_whole(folder: Path, target: Path, renew: bool) -> None:
    """Removes a built set that is not as it was written, or refuses it.

    Args:
      folder: of the data.
      target: of the set; it need not be there.
      renew: whether it is removed.

    Raises:
      UserError: it is damaged, and is not to be removed.
    """
    if not _why(folder, target):
        return
    with locked(folder, target):
        if why := _why(folder, target):
            _damaged(folder, target, why, renew)


def _damaged(folder: Path, target: Path, why: str, renew: bool) -> None:
    if not renew:
        raise UserError(f"{target} is damaged ({why}): remove it, and it is downloaded again")
    say(f"{target} is damaged ({why}): it is built again")
    with plain_errors(target):
        real = target.is_dir() and not target.is_symlink()
        shutil.rmtree(target) if real else target.unlink()
    _forget(_record(folder, target))


def _forget(record: Path) -> None:
    with contextlib.suppress(OSError):  # what is no file there says so when it is to be written
        record.unlink(missing_ok=True)


def keep_record(folder: Path, target: Path) -> None:
    """Writes down the digests of a set's files, where nothing stands about it yet."""
    path = _record(folder, target)
    if path.is_file():
        return

    def write(place: Path) -> None:
        place.write_text(json.dumps(_digests(target), indent=1))

    try:
        cached(folder, path, write)
    except (UserError, OSError):  # a folder that others have filled and we may only read
        return


def once_whole(folder: Path, target: Path, renew: bool, built: Callable[[], bool]) -> None:
    """Removes or refuses what stands where a set should be, but is none that can be read.

    Args:
      folder: of the data.
      target: of the set.
      renew: whether it is removed.
      built: whether the builder finds a set there.

    Raises:
      UserError: it is not to be removed.
    """
    if os.path.lexists(target) and not built():
        _damaged(folder, target, "it has no dataset_info.json that names its splits", renew)


def _record(folder: Path, target: Path) -> Path:
    return folder / "gam_jax" / "built" / f"{digest_of(_within(folder, target))}.json"


def _within(folder: Path, target: Path) -> str:
    return str(target.relative_to(folder) if target.is_relative_to(folder) else target)


def _why(folder: Path, target: Path) -> str:
    """What is wrong with a set; empty if nothing is, or nothing is known of it."""
    if not os.path.lexists(target):
        return ""
    if not target.is_dir():
        return "it is no folder"
    path = _record(folder, target)
    check_place(path)
    try:
        wanted, found = read_json(path), _digests(target)
    except (FileNotFoundError, BadJson):
        _forget(path)
        return ""
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name in wanted and found[name] != wanted[name]:
            return f"{name} has other bytes than were written"
    return ""


def _digests(target: Path) -> dict[str, str]:
    found = {}
    for path in sorted(target.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[path.relative_to(target).as_posix()] = digest
    return found


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
