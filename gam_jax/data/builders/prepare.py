"""Builds a TensorFlow Datasets builder once, quietly, and says plainly why it cannot."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core import download
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError
from tensorflow_datasets.core.utils import tqdm_utils

from gam_jax.data.builders.built import keep_record, once_whole
from gam_jax.data.builders.local_gfile import local_gfile
from gam_jax.data.storage import check_room, is_full_disk, locked, no_room
from sharding.errors import UserError

RETRIES = 3
"""Attempts at a download; the 10 of TensorFlow Datasets take minutes to say that one is offline."""


def prepare(
    builder: tfds.core.DatasetBuilder, name: str, room: int = 0, renew: bool = True
) -> tfds.core.DatasetBuilder:
    """Builds the data set as array_record files, unless it is built already.

    Another process that builds the same data set is waited for. If anything fails, nothing
    half-written is left.

    Args:
      builder: the builder, at its final data directory.
      name: the name the user gave, for messages.
      room: bytes that will be written, if known.
      renew: whether what is there and cannot be read is removed; else it is an error.

    Returns:
      The builder to read with: the one given, or one like it that knows what was built.

    Raises:
      UserError: no room on disk, offline, a set that must be downloaded by hand, or one whose
        builder needs TensorFlow or another package.
    """
    target, folder = Path(builder.data_dir), Path(builder.data_dir_root)
    if _is_built(builder):
        keep_record(folder, target)
        return builder
    with locked(folder, target):
        # A copy is made anew with the same arguments, so it sees what another process has built
        # since this builder was made.
        builder = copy.copy(builder)
        once_whole(folder, target, renew, functools.partial(_is_built, builder))
        if not _is_built(builder):
            check_room(target, room)
            _build(builder, name, target)
    keep_record(folder, target)
    return builder


def _is_built(builder: tfds.core.DatasetBuilder) -> bool:
    # Asked of the builder, not of the disk: what was built after the builder was made, it does not
    # know how to read.
    return bool(builder.info.splits)


def _build(builder: tfds.core.DatasetBuilder, name: str, target: Path) -> None:
    before = _unfinished(builder)
    try:
        with _few_retries(), local_gfile():
            builder.download_and_prepare(
                file_format="array_record",
                download_config=download.DownloadConfig(try_download_gcs=False),
            )
    except Exception as error:
        for path in _unfinished(builder) - before:
            shutil.rmtree(path, ignore_errors=True)
        raise _plain(error, name, target) from error


def _unfinished(builder: tfds.core.DatasetBuilder) -> set[Path]:
    downloads = Path(builder.data_dir_root) / "downloads" / builder.name
    return set(downloads.glob("*.tmp.*"))


def _plain(error: Exception, name: str, target: Path) -> Exception:
    """The error to show for one that stopped a build."""
    import requests

    if user_error := _cause(error, UserError):
        return user_error
    if is_full_disk(error):
        return no_room(target)
    if offline := _cause(error, requests.RequestException):
        url = getattr(getattr(offline, "request", None), "url", "its source")
        return UserError(
            f"{name} cannot be downloaded, no connection to {url}: go online, or copy the data "
            f"set to {target} from a machine that has it"
        )
    if _cause(error, (DownloadError, NonMatchingChecksumError)):
        return UserError(
            f"{name} cannot be downloaded ({_brief(error)}): its source has moved or changed; "
            f"fetch it by hand and train on text:PATH"
        )
    if _cause(error, ImportError):
        return UserError(f"{name} cannot be built here: {_brief(error)}; install what it names")
    if _cause(error, AssertionError):
        return UserError(f"{name} cannot be built without you: {_brief(error)}")
    if (system := _cause(error, OSError)) and getattr(system, "errno", None) is not None:
        where = f" ({getattr(system, 'filename', None) or target})"
        return UserError(
            f"{name} cannot be built: {getattr(system, 'strerror', system)}{where}; mend that, or "
            f"point data.dir at another folder"
        )
    return error


def _cause(
    error: BaseException | None, kinds: type[BaseException] | tuple[type[BaseException], ...]
) -> Exception | None:
    """The first error of those kinds among an error and what it came from."""
    while error is not None:
        if isinstance(error, kinds) and isinstance(error, Exception):
            return error
        error = error.__cause__ or error.__context__
    return None


def _brief(error: Exception, limit: int = 160) -> str:
    """The message of an error on one line, cut to a readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TensorFlow Datasets off stdout, its progress to terminals, its warnings to itself."""
    bars, terminal = tqdm_utils._active, sys.stderr.isatty()
    loggers = [logging.getLogger(name) for name in ("absl", "urllib3")]
    levels = [logger.level for logger in loggers]
    tqdm_utils.display_progress_bar(bars and terminal)
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr if terminal else io.StringIO()):
            yield
    finally:
        tqdm_utils.display_progress_bar(bars)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    usual = downloader.MAX_RETRIES
    downloader.MAX_RETRIES = RETRIES
    try:
        yield
    finally:
        downloader.MAX_RETRIES = usual
