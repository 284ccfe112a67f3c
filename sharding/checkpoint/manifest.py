"""The manifest of a checkpoint: what it holds, in JSON, with a checksum of everything.

It is written last, before the one rename that makes a checkpoint visible, and names every file
by its size and SHA-256, and itself by its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sharding.checkpoint.names import Fact
from sharding.json_file import read_json

FILE = "manifest.json"
FORMAT = 1
ELSEWHERE = 2
"""The format of a manifest that names arrays which stand in other checkpoints."""
MOST = 2**53
"""Of steps, bytes and numbers along an axis."""


class Unreadable(Exception):
    """A file that is missing, cut short or changed; the message names it."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Another checkpoint, in which an array stands under the same name.

    Attributes:
      folder: of that run's checkpoints, absolute.
      step: which of them.
      near: the same folder as seen from the one that names it, for runs that move together.
    """

    folder: str
    step: int
    near: str = ""


@dataclasses.dataclass(frozen=True)
class Stored:
    """One array.

    Attributes:
      fact: shape, dtype, kind of random key.
      axes: a logical axis name, or None, for each dimension; None if nobody said.
      digest: of its values, see `digest`.
      place: where it stands; None for this checkpoint.
    """

    fact: Fact
    axes: tuple[str | None, ...] | None
    digest: str
    place: Place | None = None


@dataclasses.dataclass(frozen=True)
class File:
    """One file."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
      step: updates done.
      loss: of validation at that step, None if it was not scored.
      arrays: by name. Nothing here depends on mesh, processes or who stores what.
      extra: JSON values that the run put beside the arrays.
      files: every other file by its path in the checkpoint.
      suspect: why the run may have gone wrong before this step; empty if nothing says so.
    """

    step: int
    loss: float | None
    arrays: Mapping[str, Stored]
    extra: Mapping[str, Any]
    files: Mapping[str, File]
    suspect: str = ""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self.files.values())


def write(folder: pathlib.Path, manifest: Manifest) -> None:
    """Writes it into a checkpoint's folder, and to the disk itself."""
    with (folder / FILE).open("w") as file:
        file.write(_text(_to_json(manifest)))
        file.flush()
        os.fsync(file.fileno())


def read(folder: pathlib.Path) -> Manifest:
    """The manifest of a checkpoint.

    Raises:
      Unreadable: it is missing, is not as it was written, or of a format of the future.
    """
    try:
        values = read_json(folder / FILE, finite=False)["manifest"]
        text = (folder / FILE).read_text()
        version = values["format"]
        if version in (FORMAT, ELSEWHERE) and _text(values) == text:
            return _from_json(values)
    except FileNotFoundError as error:
        raise Unreadable(f"{FILE} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"{FILE} cannot be read: {type(error).__name__}") from error
    if version not in (FORMAT, ELSEWHERE):
        raise Unreadable(f"{FILE} is of format {version}, this program reads {ELSEWHERE}")
    raise Unreadable(f"{FILE} does not have its own checksum")


def hash_file(path: pathlib.Path) -> File:
    """Size and SHA-256, read once."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        return File(file.tell(), found)


def check_files(folder: pathlib.Path, manifest: Manifest, part: int = 0, parts: int = 1) -> None:
    """Reads files of a checkpoint whole and compares them with the manifest.

    Args:
      folder: of the checkpoint.
      manifest: its own.
      part: which share of the bytes this process reads.
      parts: how many processes share them.

    Raises:
      Unreadable: a file is missing, too many, or is not as it was written.
    """
    present = {path.relative_to(folder).as_posix() for path in files_of(folder)} - {FILE}
    if strange := sorted(present - manifest.files.keys()):
        raise Unreadable(f"{strange[0]} was not there when it was saved")
    for name, file in manifest.files.items():
        if name not in present:
            raise Unreadable(f"{name} is missing")
        size = (folder / name).stat().st_size
        if size != file.bytes:
            raise Unreadable(f"{name} has {size:,} bytes, {file.bytes:,} were written")
    for name in _share(manifest.files, part, parts):
        try:
            found = hash_file(folder / name)
        except OSError as error:
            raise Unreadable(f"{name} cannot be read: {error.strerror}") from error
        if found != manifest.files[name]:
            raise Unreadable(f"{name} has other bytes than were written")


def files_of(folder: pathlib.Path) -> list[pathlib.Path]:
    """All files below a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _share(files: Mapping[str, File], part: int, parts: int) -> Sequence[str]:
    """The files of one of several processes: largest first, each to the one with least to do."""
    loads, mine = [0] * parts, []
    for name in sorted(files, key=lambda name: (-files[name].bytes, name)):
        least = loads.index(min(loads))
        loads[least] += files[name].bytes + 1
        if least == part:
            mine.append(name)
    return mine


def _text(values: dict[str, Any]) -> str:
    body = json.dumps(values, indent=1, sort_keys=True)
    found = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"sha256": found, "manifest": values}, indent=1, sort_keys=True) + "\n"


def _to_json(manifest: Manifest) -> dict[str, Any]:
    arrays = {
        name: {
            "shape": list(stored.fact.shape),
            "dtype": stored.fact.dtype,
            **({"key": stored.fact.key} if stored.fact.key else {}),
            "axes": None if stored.axes is None else list(stored.axes),
            "digest": stored.digest,
            **({"place": dataclasses.asdict(stored.place)} if stored.place else {}),
        }
        for name, stored in manifest.arrays.items()
    }
    files = {name: dataclasses.asdict(file) for name, file in manifest.files.items()}
    form = ELSEWHERE if any(stored.place for stored in manifest.arrays.values()) else FORMAT
    values = {"format": form, **dataclasses.asdict(manifest), "arrays": arrays, "files": files}
    if not manifest.suspect:
        del values["suspect"]
    return json.loads(json.dumps(values))  # tuples are lists from here on


def _from_json(values: dict[str, Any]) -> Manifest:
    """Raises Unreadable, TypeError or KeyError where a value is not of its kind."""
    files = {}
    for name, found in values["files"].items():
        files[name] = File(_count(found["bytes"]), _text_of(found["sha256"]))
    loss, extra = values["loss"], values["extra"]
    if not (loss is None or type(loss) in (int, float)) or type(extra) is not dict:
        raise TypeError("no loss or extra")
    arrays = {name: _stored(name, found) for name, found in values["arrays"].items()}
    suspect = _text_of(values.get("suspect", ""))
    return Manifest(_count(values["step"]), loss, arrays, extra, files, suspect)


def _stored(name: str, found: dict[str, Any]) -> Stored:
    try:
        fact = Fact(tuple(map(_count, found["shape"])), _text_of(found["dtype"]), found.get("key"))
        axes = found["axes"] and tuple(axis and _text_of(axis) for axis in found["axes"])
        if np.dtype(fact.dtype).hasobject or len(axes or fact.shape) != len(fact.shape):
            raise TypeError("no array")
        _ = fact.key and _text_of(fact.key)
        return Stored(fact, axes, _text_of(found["digest"]), _place(found.get("place")))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable(f"{FILE}: {name[:80]!r} is no array of a checkpoint") from error


def _place(found: Any) -> Place | None:
    if found is None:
        return None
    return Place(_text_of(found["folder"]), _count(found["step"]), _text_of(found["near"]))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MOST:
        raise TypeError("no count")
    return value


def _text_of(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("no text")
    return value
