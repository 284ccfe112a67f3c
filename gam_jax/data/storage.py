"""Caches on disk: where they are, how they are written whole or not at all, and locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from sharding.errors import UserError
from sharding.paths import local_path
from sharding.whole_file import check_place

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def data_dir(configured: str) -> Path:
    """The folder that holds data sets and caches.

    Args:
      configured: `Text.dir`; '' is the default of TensorFlow Datasets.
    """
    if configured:
        return local_path(configured, "data.dir")
    from tensorflow_datasets.core import constants

    return local_path(constants.DATA_DIR, "TFDS_DATA_DIR")


def cache_path(folder: Path, kind: str, settings: dict[str, object], suffix: str) -> Path:
    """The path of a cached file, named by a digest of the settings that made it."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
    return folder / "gam_jax" / kind / f"{digest}{suffix}"


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary path; renames it to `path` if the block succeeds, else removes it.

    Raises:
      UserError: the disk is full, the folder cannot be written, or `path` is no plain file.
    """
    check_place(path)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.incomplete")
    with plain_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def say(line: str) -> None:
    """A line on standard error, from the first process of a job alone."""
    import jax

    if not jax.distributed.is_initialized() or jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def cached(folder: Path, path: Path, write: Callable[[Path], None]) -> Path:
    """A cached file, made if it is not there, and made anew if it is not as it was written.

    Its SHA-256 stands beside it, in `path`.sha256.

    Args:
      folder: of the data, whose lock is held while it is made.
      path: the file.
      write: writes it to the path that it is given.

    Raises:
      UserError: the disk is full, or the folder cannot be written.
    """
    if _unfit(path):
        with locked(folder, path):
            if why := _unfit(path):
                if path.exists():
                    say(f"{path} {why}: it is made anew")
                with written_whole(path) as temporary:
                    write(temporary)
                    digest = _sha256(temporary)
                with written_whole(_beside(path)) as temporary:
                    temporary.write_text(digest)
    return path


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unfit(path: Path) -> str:
    """Why a cached file cannot be used; empty if it can."""
    check_place(path)
    check_place(_beside(path))
    try:
        if not path.exists():
            return "is not there"
        if not _beside(path).exists():
            return "has no checksum"
        wanted = _beside(path).read_bytes()
        return "" if _sha256(path).encode() == wanted else "has other bytes than were written"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


@contextlib.contextmanager
def locked(folder: Path, what: object) -> Iterator[None]:
    """Holds a lock in the data folder: processes that want the same thing built build it once."""
    lock = folder / "gam_jax" / "locks" / digest_of(str(what))
    check_place(lock)
    with plain_errors(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("w")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Turns a full disk or a place that cannot be written into one plain line."""
    try:
        yield
    except OSError as error:
        if is_full_disk(error):
            raise no_room(path.parent) from error
        if error.errno is None:  # not the system's
            raise
        raise UserError(
            f"cannot write {path}: {error.strerror}; point data.dir at a folder you can write"
        ) from error


def is_full_disk(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that the disk is full."""
    seen: BaseException | None = error
    while seen is not None:
        # ArrayRecord's writer reports it as text, from C++.
        if getattr(seen, "errno", None) in FULL_DISK or "No space left on device" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def no_room(folder: Path, needed: int = 0) -> UserError:
    """The error for a disk without room."""
    amount = f" (about {needed / 2**20:.0f} MiB needed)" if needed else ""
    return UserError(
        f"no room on disk in {folder}{amount}: free some space or point data.dir at another disk"
    )


def check_room(folder: Path, needed: int) -> None:
    """Refuses to start writing `needed` bytes into a folder whose disk has fewer free.

    Raises:
      UserError: there is too little room.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if shutil.disk_usage(existing).free < needed:
        raise no_room(folder, needed)


def digest_of(*parts: object) -> str:
    """A short stable digest of a few values."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
