"""A Hugging Face model folder: config.json and arrays in safetensors files. NumPy alone.

Nothing is trusted. A file is read where it lies in the folder, a shape is compared before
an array is read, and what nobody has read at the end is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from gam_jax.convert.fields import Fields, shown
from gam_jax.convert.harmless import ARRAYS
from gam_jax.convert.lazy import InMemory
from gam_jax.convert.tensor_file import NAMES, Stored, open_tensors, told
from sharding.errors import UserError
from sharding.json_file import read_json

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"

JSON_BYTES = 1 << 26
"""More than the index of any model has."""
FLOATS = ("F32", "F16", "BF16", "F64")
"""The dtypes that are read as they are."""
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,200}\.safetensors")


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
        """An array, float32 when it is read: what NumPy moves of it is noted, see `convert.lazy`.

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
        if (own := found.array.shape) != shape:
            raise UserError(
                f"'{whole}' has the shape {own} where config.json asks for {shape}: they are not "
                f"of one model"
            )
        _check_dtype(whole, found)
        return cast(np.ndarray, found.array)

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
    return np.asarray(found.array)


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
        return open_tensors(file_in(folder, SINGLE))
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
    return open_tensors(file_in(folder, name))


def read_object(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of a folder.

    Raises:
      UserError: it is missing, or holds no JSON object.
    """
    return _json(folder, name)


def in_memory(name: str, array: Any) -> Stored:
    """An array that is in memory already, or not read yet."""
    own = InMemory(np.asarray(array), name)
    return Stored(NAMES.get(own.array.dtype, str(own.array.dtype)), own)


def _check_dtype(name: str, found: Stored) -> None:
    if found.dtype not in FLOATS:
        raise UserError(
            f"{_quoted(name)} is of dtype {found.dtype}, which is not read here unless config.json "
            f"says how it is quantized: save the model in float32, float16 or bfloat16"
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
        for name, stored in open_tensors(file_in(folder, file)).items():
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
        reason = getattr(error, "strerror", None) or told(error)
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
