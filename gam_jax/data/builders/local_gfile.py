"""The few file functions that TensorFlow Datasets takes from TensorFlow, over local files.

TensorFlow Datasets reads and writes array_record files without TensorFlow, but it still reaches
for `tf.io.gfile` in three places: to unpack an archive, to shuffle a split of more than a GiB,
and inside many of its own builders (tiny_shakespeare and lm1b among them). Where TensorFlow is
not installed, `local_gfile()` answers those calls for as long as a data set is being built.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import resource
import shutil
from collections.abc import Iterator
from types import SimpleNamespace
from typing import IO, Any


class UnimplementedError(Exception):
    """A path that is not a local file."""


class ResourceExhaustedError(Exception):
    """Never raised here; TensorFlow Datasets names it in an except clause."""


@contextlib.contextmanager
def local_gfile() -> Iterator[None]:
    """Stands in for TensorFlow inside TensorFlow Datasets, unless TensorFlow is installed."""
    if importlib.util.find_spec("tensorflow") is not None:
        yield
        return
    from tensorflow_datasets.core.utils import lazy_imports_utils

    # The handle is shared by every module of TensorFlow Datasets and caches what it resolves to.
    handle: Any = lazy_imports_utils.tensorflow.__dict__
    if "_module" in handle:
        yield
        return
    handle["_module"] = _StandIn()
    try:
        with _many_open_files():
            yield
    finally:
        handle.pop("_module", None)


class _StandIn:
    """What `tensorflow` resolves to: `io.gfile`, two errors and `compat.as_text`."""

    def __init__(self) -> None:
        names = (GFile, exists, isdir, listdir, walk, copy, remove, makedirs)
        gfile = SimpleNamespace(glob=glob_paths, **{f.__name__: f for f in names})
        self.io = SimpleNamespace(gfile=gfile)
        self.compat = SimpleNamespace(as_text=_as_text)
        self.errors = SimpleNamespace(
            UnimplementedError=UnimplementedError,
            ResourceExhaustedError=ResourceExhaustedError,
            NotFoundError=FileNotFoundError,
        )

    def __getattr__(self, name: str) -> Any:
        raise ImportError(f"tensorflow.{name} is needed, and TensorFlow is not installed")


def GFile(name: str | os.PathLike[str], mode: str = "r") -> IO[Any]:
    """Opens a local file; text is UTF-8 and its line ends are kept."""
    if "b" in mode:
        return open(name, mode)
    return open(name, mode, encoding="utf-8", newline="\n")


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether the path exists."""
    return os.path.exists(path)


def isdir(path: str | os.PathLike[str]) -> bool:
    """Whether the path is a folder."""
    return os.path.isdir(path)


def listdir(path: str | os.PathLike[str]) -> list[str]:
    """The names in a folder."""
    return os.listdir(path)


def walk(top: str | os.PathLike[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Every folder below `top`."""
    return os.walk(os.fspath(top))


def glob_paths(pattern: Any) -> list[str]:
    """The sorted paths that match one pattern or any of several."""
    patterns = pattern if isinstance(pattern, (list, tuple)) else [pattern]
    return sorted(path for p in patterns for path in glob.glob(os.fspath(p)))


def copy(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copies a local file; a URL is not one, and the caller then downloads it."""
    if "://" in os.fspath(source):
        raise UnimplementedError(os.fspath(source))
    shutil.copyfile(source, target)


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a file."""
    os.remove(path)


def makedirs(path: str | os.PathLike[str]) -> None:
    """Makes a folder and its parents."""
    os.makedirs(path, exist_ok=True)


def _as_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@contextlib.contextmanager
def _many_open_files() -> Iterator[None]:
    # The shuffle of a large split keeps 1,000 files open; a usual limit is 1,024 in all.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
