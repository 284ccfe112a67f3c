"""Writes a Hugging Face model folder, one array at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from gam_jax.convert.folder import CONFIG, INDEX, SINGLE
from gam_jax.convert.lazy import FLOAT32, as_lazy
from gam_jax.convert.tensor_file import bytes_of, write_tensors
from sharding import processes
from sharding.errors import UserError

SHARD_BYTES = 5_000_000_000
"""Arrays beyond that size go to several files."""


def check_empty(folder: Path) -> None:
    """A UserError if a folder to be written holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder: name another")


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    shard_bytes: int = SHARD_BYTES,
    beside: Mapping[str, bytes] = {},
    as_stored: bool = False,
) -> None:
    """Writes config.json and the arrays, in files of at most `shard_bytes` where one array fits.

    Arrays are brought to the memory of the host piece by piece, as they are written. Where they
    lie on devices of several processes, all processes call it, and the first writes.

    Args:
      folder: new or empty.
      config: what config.json says.
      tensors: the arrays by name.
      shard_bytes: the most of a file.
      beside: what other files hold, by name.
      as_stored: writes each array in its own dtype; else all are float32.

    Raises:
      UserError: the folder holds something already, or cannot be written.
    """
    arrays = {name: as_lazy(array) for name, array in tensors.items()}
    dtypes = {name: array.dtype if as_stored else FLOAT32 for name, array in arrays.items()}
    sizes = {name: bytes_of(array, dtypes[name]) for name, array in arrays.items()}
    shards = _shards(sizes, shard_bytes)
    problem = _begun(folder, config, beside, shards, sizes) if processes.is_first() else ""
    if problem := processes.first_said(problem):
        raise UserError(problem)
    from tqdm import tqdm

    quiet = None if processes.is_first() else True
    total = sum(sizes.values())
    with tqdm(desc="writing", total=total, unit="B", unit_scale=True, disable=quiet) as bar:
        for file, names in shards.items():
            with _Written(folder / file) as out:
                write_tensors(out, {name: arrays[name] for name in names}, dtypes, bar.update)
            problem = problem or out.problem
    if problem := processes.first_said(problem):
        raise UserError(problem)


def _begun(
    folder: Path,
    config: Mapping[str, Any],
    beside: Mapping[str, bytes],
    shards: Mapping[str, list[str]],
    sizes: Mapping[str, int],
) -> str:
    """Writes all files but those of arrays; the message if that cannot be done."""
    try:
        check_empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        for name, content in beside.items():
            (folder / name).write_bytes(content)
        if len(shards) > 1:
            places = {name: file for file, names in shards.items() for name in names}
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"cannot write {folder}: {error}"
    return ""


class _Written:
    """A file that the first process writes, and that others do not.

    Where it cannot be written, what follows is dropped: arrays of several processes are gathered
    by all of them, so none may stop before the others.

    Attributes:
      problem: why it could not be written.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.problem = path, ""
        self._file: BinaryIO | None = None

    def __enter__(self) -> _Written:
        if processes.is_first():
            try:
                self._file = self._path.open("wb")
            except OSError as error:
                self._failed(error)
        return self

    def write(self, content: Any) -> None:
        """As a file's."""
        if self._file is not None:
            try:
                self._file.write(content)
            except OSError as error:
                self._failed(error)

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._failed(error)

    def _failed(self, error: OSError) -> None:
        self.problem = self.problem or f"cannot write {self._path}: {error.strerror}"
        self._file = None


def _shards(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """The names in each file."""
    found: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > room and found[-1]:
            found.append([])
            room = limit
        found[-1].append(name)
        room -= size
    if len(found) == 1:
        return {SINGLE: found[0]}
    of = len(found)
    return {f"model-{i + 1:05d}-of-{of:05d}.safetensors": own for i, own in enumerate(found)}
