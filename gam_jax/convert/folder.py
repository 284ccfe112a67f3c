"""A Hugging Face model folder: config.json and arrays in safetensors files. NumPy alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sharding.errors import UserError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
"""Arrays beyond that size go to several files, as transformers writes them."""


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json holds.

    Raises:
      UserError: it is missing, or not JSON.
    """
    return _json(folder / CONFIG)


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the folder in float32, from one file or from all that its index names.

    Raises:
      UserError: a file that is missing or damaged, or an index that does not fit its files.
    """
    if (folder / INDEX).is_file():
        places: dict[str, str] = _json(folder / INDEX).get("weight_map", {})
        tensors = {}
        for file in sorted(set(places.values())):
            tensors.update(_arrays(folder / file))
        if missing := places.keys() - tensors.keys():
            raise UserError(
                f"{folder / INDEX} names {sorted(missing)[0]}, which {places[min(missing)]} does "
                f"not hold: download the folder again"
            )
        return tensors
    if not (folder / SINGLE).is_file():
        raise UserError(
            f"{folder} holds no {SINGLE} and no {INDEX}: save the model with safe serialization"
        )
    return _arrays(folder / SINGLE)


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json and the arrays, in files of at most `shard_bytes` where one array fits.

    Raises:
      UserError: the folder holds something already, or cannot be written.
    """
    import safetensors.numpy

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not an empty folder: name another")

    shards = _shards(tensors, shard_bytes)
    names = [SINGLE]
    if len(shards) > 1:
        count = len(shards)
        names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
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


def _arrays(path: Path) -> dict[str, np.ndarray]:
    import safetensors.numpy

    try:
        arrays = safetensors.numpy.load_file(path)
    except Exception as error:  # the library raises its own and the system's
        raise UserError(f"cannot read {path}: {error}; download it again") from error
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: is it a model folder?") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): download it again") from error
