"""One safetensors file: its arrays, read by ranges of bytes, and written one at a time.

The file is the length of a header (8 bytes, little end first), the header (JSON: of each array
dtype, shape and its bytes behind the header), and the arrays, the last axis innermost
(huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from gam_jax.convert.indices import PIECE, Index, picked
from gam_jax.convert.lazy import FLOAT32, Lazy, Source
from sharding.errors import UserError

DTYPES: Mapping[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "U8": np.uint8,
        "I8": np.int8,
        "I32": np.int32,
        "I64": np.int64,
        "BOOL": np.bool_,
    }.items()
}
"""Names of safetensors, and NumPy's dtypes."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
GAP = 4096
"""Bytes between two ranges that are read with them: disks are read by such pages."""


class Stored(NamedTuple):
    """One array of a folder.

    Attributes:
      dtype: as safetensors calls it, such as F32.
      array: its numbers, not read yet.
    """

    dtype: str
    array: Lazy


@dataclasses.dataclass(frozen=True, eq=False)
class InFile(Source):
    """An array in a file.

    Attributes:
      path: of the file.
      name: of the array, for messages.
      start: its first byte.
      raw: how its numbers are stored.
      shape: of the array.
      dtype: float32, in which all arrays of a folder are read.
    """

    path: Path
    name: str
    start: int
    raw: np.dtype
    shape: tuple[int, ...]
    dtype: np.dtype = FLOAT32

    def piece(self, index: Index) -> np.ndarray:
        """A part as it is stored; ranges of bytes that hold it, and nothing else, are read."""
        steps = [self.raw.itemsize * math.prod(self.shape[a + 1 :]) for a in range(self.ndim)]
        axis = self.ndim  # of the ranges; all axes behind it are taken whole
        covers = [*index]
        while axis:
            axis -= 1
            covers[axis] = _covered(index[axis], self.shape[axis], steps[axis], whole=axis > 0)
            if len(covers[axis]) < self.shape[axis]:
                break
        rows = np.zeros(1, np.int64)
        for own, step in zip(covers[:axis], steps[:axis], strict=True):
            rows = (rows[:, None] + own * step).reshape(-1)
        step = steps[axis] if steps else self.raw.itemsize
        cover = covers[axis] if covers else np.zeros(1, np.int64)
        found = np.empty((len(rows), len(cover) * step), np.uint8)
        runs = np.split(np.arange(len(cover)), np.flatnonzero(np.diff(cover) != 1) + 1)
        with opened(self.path) as file:
            for row, into in zip(rows.tolist(), found, strict=True):
                for run in runs:
                    place = self.start + row + int(cover[run[0]]) * step
                    read_into(file, place, into[run[0] * step : (run[-1] + 1) * step], self.path)
        array = found.reshape(-1).view(self.raw).reshape(list(map(len, covers)))
        places = [
            np.arange(len(own)) if i < axis else np.searchsorted(cover, own)
            for i, (own, cover) in enumerate(zip(index, covers, strict=True))
        ]
        return picked(array, tuple(places))


def ends(array: Lazy, count: int = 64) -> bytes:
    """The first and the last bytes of an array in a file."""
    assert isinstance(array, InFile)
    size = array.size * array.raw.itemsize
    found = np.empty((2, min(count, size)), np.uint8)
    with opened(array.path) as file:
        for place, into in zip((0, size - found.shape[1]), found, strict=True):
            read_into(file, array.start + place, into, array.path)
    return found.tobytes()


def _covered(wanted: np.ndarray, size: int, step: int, whole: bool) -> np.ndarray:
    """Places to read on an axis: those wanted, in order, and what lies between in small gaps."""
    places = np.unique(wanted)
    gaps = (np.diff(places) - 1) * step
    ends = np.flatnonzero(gaps >= GAP)
    firsts, lasts = places[[0, *(ends + 1)]], places[[*ends, -1]]
    pairs = zip(firsts.tolist(), lasts.tolist(), strict=True)
    cover = np.concatenate([np.arange(first, last + 1) for first, last in pairs])
    return np.arange(size) if whole and (size - len(cover)) * step < GAP else cover


def opened(path: Path) -> BinaryIO:
    """A file, to be read as it is asked for; a UserError if it cannot be."""
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def read_into(file: BinaryIO, place: int, into: np.ndarray, path: Path) -> None:
    """Fills an array of bytes from a place of a file on.

    Raises:
      UserError: the file ends before, or cannot be read.
    """
    left = into.data
    try:
        file.seek(place)
        while left:
            count = file.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise UserError(f"cannot read {path}: it has become shorter; download it again")
            left = left[count:]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def open_tensors(path: Path) -> dict[str, Stored]:
    """The arrays of a safetensors file; the library checks that its header fits its bytes.

    Raises:
      UserError: a file that is none, or damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np"):
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except Exception as error:  # the library raises its own and the system's
        raise UserError(f"cannot read {path}: {told(error)}; download it again") from error
    header.pop("__metadata__", None)
    return {
        name: Stored(
            said["dtype"],
            InFile(
                path,
                name,
                8 + size + said["data_offsets"][0],
                DTYPES.get(said["dtype"], np.dtype(np.void)),
                tuple(said["shape"]),
            ),
        )
        for name, said in header.items()
    }


def told(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


class Sink(Protocol):
    """What arrays are written to, such as a file."""

    def write(self, content: Any) -> Any: ...


def write_tensors(
    file: Sink,
    tensors: Mapping[str, Lazy],
    dtypes: Mapping[str, np.dtype],
    tell: Callable[[int], Any] = lambda count: None,
) -> None:
    """Writes arrays as a safetensors file, one piece at a time.

    Args:
      file: to write to.
      tensors: by name.
      dtypes: of each, in the file.
      tell: is called with the bytes that were written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    names = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))  # so all are aligned
    end = 0
    for name in names:
        start, end = end, end + bytes_of(tensors[name], dtypes[name])
        shape = list(tensors[name].shape)
        header[name] = {"dtype": NAMES[dtypes[name]], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        for piece in _pieces(tensors[name], dtypes[name]):
            file.write(piece.reshape(-1).view(np.uint8).data)
            tell(piece.nbytes)


def _pieces(tensor: Lazy, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The array in pieces along its first axis."""
    if not tensor.ndim:
        yield np.asarray(tensor, dtype)
        return
    rows = max(1, PIECE // max(1, math.prod(tensor.shape[1:])))
    for start in range(0, len(tensor), rows):
        yield np.asarray(tensor[start : start + rows], dtype)


def bytes_of(tensor: Lazy, dtype: np.dtype) -> int:
    """Of an array that is stored so."""
    return tensor.size * dtype.itemsize
