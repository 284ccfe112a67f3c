"""A Hugging Face model folder: config.json and arrays in safetensors files. NumPy alone.

Nothing is trusted. A file is read where it lies in the folder, a shape is compared before
an array is read, and what nobody has read at the end is an error.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gam_jax.convert.fields import Fields, shown
from gam_jax.convert.harmless import ARRAYS
from sharding.errors import UserError
from sharding.json_file import read_json

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
SHARD_BYTES = 5_000_000_000
"""Arrays beyond that size go to several files, as transformers writes them."""

JSON_BYTES = 1 << 26
"""More than the index of any model has."""
FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
"""The dtypes that are read, by the names of NumPy; safetensors' names of them."""
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}\.safetensors")


class Stored(NamedTuple):
    """One array of a folder, before it is read.

    Attributes:
      shape: as it is stored.
      dtype: as safetensors calls it, such as F32.
      load: reads it.
    """

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray]


class Reader:
    """Hands out the fields and the arrays of a folder, and remembers which were asked for.

    Args:
      config: the fields of its config.json.
      stored: each array of the folder by its whole name.
      prefix: what all names that are asked for here begin with.
      index: the number of the block that they belong to.
      taken: the whole names that were asked for.
    """

    def __init__(
        self,
        config: Fields,
        stored: Mapping[str, Stored],
        prefix: str = "",
        index: int = 0,
        taken: set[str] | None = None,
    ) -> None:
        self.config, self.index = config, index
        self._stored, self._prefix = stored, prefix
        self._taken: set[str] = set() if taken is None else taken

    def block(self, blocks: str, index: int) -> Reader:
        """Of one block; `blocks` is what stands before its number in the names of arrays."""
        return Reader(self.config, self._stored, f"{blocks}{index}.", index, self._taken)

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._stored

    def names(self) -> list[str]:
        """The whole names of all arrays."""
        return list(self._stored)

    def take(self, name: str, *shape: int) -> np.ndarray:
        """An array in float32.

        Raises:
          UserError: there is none of that name, it has another shape, or a dtype that is not read.
        """
        whole = self._prefix + name
        found = self._stored.get(whole)
        if found is None:
            raise UserError(
                f"the folder has no '{whole}', which its config.json asks for: is it whole, and "
                f"are both of one model?"
            )
        self._taken.add(whole)
        if found.shape != shape:
            raise UserError(
                f"'{whole}' has the shape {found.shape} where config.json asks for {shape}: they "
                f"are not of one model"
            )
        return as_float32(whole, found)

    def check_dtypes(self) -> None:
        """A UserError for the first array of a dtype that is not read, such as fp8 or int4."""
        for name, found in self._stored.items():
            if not _is_harmless(name):
                _check_dtype(name, found)

    def check_all_taken(self, spare: Iterable[str] = ()) -> None:
        """A UserError for the first array that nobody asked for and that is not harmless.

        Args:
          spare: names of arrays that this model does without.
        """
        left = [name for name in self._stored.keys() - self._taken if not _is_harmless(name)]
        if left := sorted(set(left) - set(spare)):
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise UserError(
                f"the folder has {_quoted(left[0])}{more}, which the model of its config.json does "
                f"not read: a field is missing there, or they are not of one model"
            )


def as_float32(name: str, found: Stored) -> np.ndarray:
    """An array that is read; a UserError if float32 cannot hold it."""
    _check_dtype(name, found)
    try:
        with np.errstate(over="raise"):
            return np.asarray(found.load(), np.float32)
    except FloatingPointError as error:
        raise UserError(f"{_quoted(name)} has numbers that float32 cannot hold") from error


def _is_harmless(name: str) -> bool:
    """Whether an array of that name need not be read."""
    return any(re.fullmatch(pattern, name) for pattern in ARRAYS)


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json holds.

    Raises:
      UserError: it is missing, or no JSON object.
    """
    return _json(folder, CONFIG)


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the folder in float32, see `open_arrays`."""
    return {name: as_float32(name, found) for name, found in open_arrays(folder).items()}


def holds_arrays(folder: Path) -> bool:
    """Whether there are any, beside config.json."""
    return _there(folder / SINGLE) or _there(folder / INDEX)


def open_arrays(folder: Path) -> dict[str, Stored]:
    """The arrays of a folder, none of them read yet, from all files that its index names.

    Raises:
      UserError: a file that is missing or damaged, or an index that does not fit its files.
    """
    single, index = _there(folder / SINGLE), _there(folder / INDEX)
    if not single and not index:
        _refuse_pickle(folder)
        raise UserError(
            f"{folder} holds no {SINGLE} and no {INDEX}: save the model with safe serialization"
        )
    if not index:
        return _open(file_in(folder, SINGLE))
    found = _open_shards(folder, _places(folder))
    if single:
        raise UserError(
            f"{folder} holds both {SINGLE} and {INDEX}: remove the one that is not the model's"
        )
    return found


def _refuse_pickle(folder: Path) -> None:
    if _there(folder / PICKLE):
        raise UserError(
            f"{folder} holds {PICKLE}, a pickle, which may run code when it is opened and is not "
            f"read: save its arrays with safetensors.torch.save_file({{n: x.clone() for n, x in "
            f"torch.load('{PICKLE}', weights_only=True).items()}}, '{SINGLE}')"
        )


def open_file(folder: Path, name: str) -> dict[str, Stored]:
    """The arrays of one safetensors file of a folder, none of them read yet.

    Raises:
      UserError: it is missing or damaged.
    """
    return _open(file_in(folder, name))


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of a folder.

    Raises:
      UserError: it is missing, or holds no JSON object.
    """
    return _json(folder, name)


def check_empty(folder: Path) -> None:
    """A UserError if a folder to be written holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder: name another")


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    shard_bytes: int = SHARD_BYTES,
    beside: Mapping[str, bytes] = {},
) -> None:
    """Writes config.json and the arrays, in files of at most `shard_bytes` where one array fits.

    Args:
      folder: new or empty.
      config: what config.json says.
      tensors: the arrays by name.
      shard_bytes: the most of a file.
      beside: what other files hold, by name.

    Raises:
      UserError: the folder holds something already, or cannot be written.
    """
    import safetensors.numpy

    check_empty(folder)
    shards = _shards(tensors, shard_bytes)
    names = [SINGLE]
    if len(shards) > 1:
        count = len(shards)
        names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        for name, content in beside.items():
            (folder / name).write_bytes(content)
        for name, shard in zip(names, shards, strict=True):
            safetensors.numpy.save_file(shard, folder / name, metadata={"format": "pt"})
        if len(shards) > 1:
            places = {key: n for n, s in zip(names, shards, strict=True) for key in s}
            size = sum(array.nbytes for array in tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": places}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}") from error


def _shards(tensors: Mapping[str, np.ndarray], limit: int) -> list[dict[str, np.ndarray]]:
    shards: list[dict[str, np.ndarray]] = [{}]
    room = limit
    for name, array in tensors.items():
        if array.nbytes > room and shards[-1]:
            shards.append({})
            room = limit
        shards[-1][name] = np.ascontiguousarray(array)
        room -= array.nbytes
    return shards


def in_memory(array: np.ndarray) -> Stored:
    """An array that is in memory already."""
    return Stored(array.shape, FLOATS.get(str(array.dtype), str(array.dtype)), lambda: array)


def _check_dtype(name: str, found: Stored) -> None:
    if found.dtype not in FLOATS.values():
        raise UserError(
            f"{_quoted(name)} is of dtype {found.dtype}, which is not read here (quantized weights "
            f"are not): save the model in float32, float16 or bfloat16"
        )


def _quoted(name: str) -> str:
    """On one line, cut short."""
    return f"'{name}'" if name.isascii() and name.isprintable() else shown("name", name)


def _places(folder: Path) -> dict[str, str]:
    """Which file holds which array, by the index."""
    path = folder / INDEX
    places = _json(folder, INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path} has no weight_map of names and files: is it an index?")
    for name, file in places.items():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise UserError(
                f"{path}: {shown(name, file)} is not the name of a safetensors file in that folder"
            )
    return places


def _open_shards(folder: Path, places: Mapping[str, str]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    files: dict[str, str] = {}
    for file in sorted(set(places.values())):
        for name, stored in _open(file_in(folder, file)).items():
            if name in found:
                raise UserError(
                    f"{folder}: both {files[name]} and {file} hold {_quoted(name)}: one of them is "
                    f"not of this model"
                )
            found[name], files[name] = stored, file
    for name, file in places.items():
        if files.get(name) != file:
            raise UserError(
                f"{folder / INDEX} names {shown(name, file).partition('=')[0]}, which {file} does "
                f"not hold: download the folder again"
            )
    return found


def _open(path: Path) -> dict[str, Stored]:
    """The arrays of a safetensors file; the library checks that its header fits its bytes."""
    from safetensors import safe_open

    try:
        file = safe_open(path, framework="np")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: Stored(
                tuple(part.get_shape()), str(part.get_dtype()), functools.partial(_load, file, name)
            )
            for name, part in slices.items()
        }
    except Exception as error:  # the library raises its own and the system's
        raise UserError(f"cannot read {path}: {_line(error)}; download it again") from error


def _load(file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except Exception as error:  # likewise
        raise UserError(f"cannot read {_quoted(name)}: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: is it a model folder?") from error


def file_in(folder: Path, name: str) -> Path:
    """A file of the folder. A link may lead to another, or to where a download cache has it.

    That cache (huggingface_hub) has `snapshots/<revision>/` full of links into `blobs/`.
    """
    path = folder / name
    try:
        real, home = path.resolve(strict=True), folder.resolve()
        regular = real.is_file()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or _line(error)
        raise UserError(f"cannot read {path}: {reason}: is it a model folder?") from error
    homes = [home]
    if home.parent.name == "snapshots":
        homes.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in homes):
        raise UserError(f"{path} leads outside of that folder: put the file itself there")
    if not regular:
        raise UserError(f"cannot read {path}: it is no file")
    return path


def _json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object; Mamba-2's config.json has an infinity."""
    path = file_in(folder, name)
    try:
        return read_json(path, mend="download it again", max_bytes=JSON_BYTES, finite=False)
    except FileNotFoundError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
