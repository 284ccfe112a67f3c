"""Parameters out to a safetensors file, and in again. No code is ever read: arrays and JSON.

What goes out is compared with its digests, as `restore` does. What comes in is another program's
word: steps, names, shapes, dtypes and notes are checked before anything is written.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sharding.checkpoint.digest import add, digest, shown
from sharding.checkpoint.failures import Damaged, first_line
from sharding.checkpoint.inspect import FOLDER, open_run
from sharding.checkpoint.manifest import Manifest, Stored
from sharding.checkpoint.names import nested
from sharding.checkpoint.saved import OTHER_VALUES
from sharding.checkpoint.store import Checkpoints
from sharding.errors import UserError
from sharding.paths import check_local
from sharding.whole_file import check_place, write_named

PARAMS = "params/"
DTYPES = ("F32", "F16", "BF16", "I32", "I16", "I8", "U32", "U16", "U8", "BOOL")
"""The dtypes that come in, by safetensors' names: JAX would cut those of 64 bits in two."""
MOST_STEPS = 2**31 - 1

_NOTES = "checkpoint"
_SMALL_FILE = re.compile(r"[a-z_]+\.json")
_NAME = re.compile(r"(?!\.+(/|$))[\w.:+-]{1,200}(/(?!\.+(/|$))[\w.:+-]{1,200}){0,20}", re.ASCII)
"""Parts between slashes; no part is of dots alone."""


class Notes(NamedTuple):
    """What `export` says of a checkpoint in the metadata of a file.

    Attributes:
      step: updates done.
      extra: JSON values that the run put beside the arrays.
      axes: logical axes by name, params/ before it.
      files: the run's small JSON files, their text by their name.
    """

    step: int = 0
    extra: Mapping[str, Any] = {}
    axes: Mapping[str, tuple[str | None, ...]] = {}
    files: Mapping[str, str] = {}


def export(text: str, to: pathlib.Path) -> dict[str, Any]:
    """Writes the parameters of a checkpoint, in their own shapes, under their own names.

    Step, logical axes, what the checkpoint says of itself, and the run's small JSON files
    (configuration, tokenizer) go into the file's metadata.

    Args:
      text: RUN or RUN@WHICH.
      to: the file; it must not be there yet.

    Returns:
      JSON values: what was written.

    Raises:
      UserError: no such run or step, no parameters in it, or a file that is there.
      Damaged: the checkpoint is not as it was written, by its files or by an array's digest.
    """
    checkpoints, which = open_run(text)
    step = checkpoints.choose(which)
    check_place(to, "--to")
    if to.exists():
        raise UserError(f"{to} exists: name another file with --to")
    checkpoints.check(step)
    manifest = checkpoints.manifest(step)
    names = [name for name in manifest.arrays if name.startswith(PARAMS)]
    if not names:
        raise UserError(f"checkpoint {step} in {checkpoints.folder} holds no parameters")
    arrays = {name.removeprefix(PARAMS): _verified(checkpoints, manifest, name) for name in names}
    notes = {
        "step": step,
        "extra": manifest.extra,
        "axes": {name: manifest.arrays[name].axes for name in names},
        "files": _small_files(checkpoints.folder.parent),
    }
    try:
        save_file(arrays, to, metadata={_NOTES: json.dumps(notes)})
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"cannot write {to}: {first_line(error)}") from error
    return {"file": str(to), "step": step, "arrays": len(arrays), "bytes": to.stat().st_size}


def load(path: pathlib.Path, run: pathlib.Path) -> dict[str, Any]:
    """Makes a run of the parameters in a file: to look at, to write with, or to start from.

    Files of other programs are welcome; what `export` adds is used where it is there.

    Args:
      path: a safetensors file.
      run: the folder; it must hold no checkpoint yet.

    Returns:
      JSON values: what was read.

    Raises:
      UserError: not a safetensors file, arrays or notes that no checkpoint could have, or a run
        that has checkpoints. Nothing has been written then.
    """
    check_local(path)
    if Checkpoints(run / FOLDER, read_only=True).steps():
        raise UserError(f"{run} has checkpoints: name another folder with --run")
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            _check_arrays(path, shapes, {n: str(part.get_dtype()) for n, part in slices.items()})
            notes = _notes(path, file.metadata() or {}, shapes)
            arrays = {name: jnp.asarray(file.get_tensor(name)) for name in names}
    except UserError:
        raise
    except Exception as error:  # the library raises its own and the system's
        raise UserError(
            f"{path} is not a safetensors file that can be read: {first_line(error)}"
        ) from error
    with Checkpoints(run / FOLDER) as checkpoints:
        state = nested({PARAMS + name: array for name, array in arrays.items()})
        checkpoints.save(notes.step, state, notes.extra, axes=notes.axes)
        checkpoints.wait()
    written = []
    for name, content in notes.files.items():
        if not (run / name).exists():
            write_named(run / name, content)
            written.append(name)
    return {"run": str(run), "step": notes.step, "arrays": len(arrays), "files": written}


def _verified(checkpoints: Checkpoints, manifest: Manifest, name: str) -> np.ndarray:
    """An array as it was saved; Damaged if its shape, dtype or any value is another."""
    stored = manifest.arrays[name]
    where = f"'{name}' of checkpoint {manifest.step} in {checkpoints.folder}"
    try:
        array, found = _with_digest(checkpoints, manifest.step, name, stored)
    except UserError:  # it stands in another checkpoint, which is gone
        raise
    except (OSError, ValueError) as error:  # what TensorStore raises
        raise Damaged(where, f"it cannot be read: {first_line(error)}") from error
    if found != stored.digest:
        if stored.place:
            raise checkpoints.not_there(manifest.step, name, stored.place, OTHER_VALUES)
        raise Damaged(where, "it has other values than were saved")
    return array


def _with_digest(
    checkpoints: Checkpoints, step: int, name: str, stored: Stored
) -> tuple[np.ndarray, str]:
    blocks = checkpoints.reader(step).blocks(name, stored.fact)
    array = np.empty(stored.fact.shape, np.dtype(stored.fact.dtype))
    parts, count = [], 0
    for place, values in blocks:
        array[tuple(slice(lo, hi) for lo, hi in place)] = values
        parts.append(digest(values, [lo for lo, _ in place]))
        count += values.size
    if count != array.size:
        raise ValueError(f"it has {count:,} numbers, not {stored.fact}")
    return array, shown(add(parts))


def _small_files(folder: pathlib.Path) -> dict[str, str]:
    try:
        return {
            path.name: path.read_text(encoding="utf-8")
            for path in sorted(folder.glob("*.json"))
            if _SMALL_FILE.fullmatch(path.name)
        }
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the JSON files of {folder}: {first_line(error)}") from error


def _check_arrays(
    path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]
) -> None:
    if not shapes:
        raise UserError(f"{path} holds no arrays")
    places: dict[str, str] = {}
    for name, shape in shapes.items():
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{path}: {name[:80]!a} cannot be the name of an array in a checkpoint: letters, "
                f"digits and _.:+- alone, in parts between slashes"
            )
        if 0 in shape:
            raise UserError(f"{path}: '{name}' has no numbers, its shape is {list(shape)}")
        if dtypes[name] not in DTYPES:
            raise UserError(
                f"{path}: '{name}' is of dtype {dtypes[name]}, which no checkpoint here holds: "
                f"write it as one of {', '.join(DTYPES)}"
            )
        other = places.setdefault(name.replace("/", "."), name)
        if other != name:
            raise UserError(f"{path}: '{other}' and '{name}' would be one array: rename one")
    for name in shapes:
        parts = name.split("/")
        for count in range(1, len(parts)):
            if (inside := "/".join(parts[:count])) in shapes:
                raise UserError(f"{path}: '{inside}' is an array, and '{name}' lies in it")


def _notes(
    path: pathlib.Path, metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> Notes:
    """What a file says of itself; nothing if it was not written by `export`."""

    def refused(what: str) -> UserError:
        return UserError(f"{path}: the metadata '{_NOTES}' {what}: export the checkpoint again")

    if _NOTES not in metadata:
        return Notes()
    try:
        found = json.loads(metadata[_NOTES])
    except (ValueError, RecursionError) as error:
        raise refused("is not JSON") from error
    if not isinstance(found, dict) or (strange := sorted(found.keys() - set(Notes._fields))):
        raise refused("is no object" if not isinstance(found, dict) else f"has {strange[0]!a}")
    step, extra = found.get("step", 0), found.get("extra", {})
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= MOST_STEPS:
        raise refused(f"has step={str(step)[:40]!a}, which is no whole number from 0")
    if not isinstance(extra, dict):
        raise refused("has an 'extra' that is no object")
    axes, files = found.get("axes", {}), found.get("files", {})
    if not isinstance(axes, dict) or not isinstance(files, dict):
        raise refused("has axes or files that are no object")
    for name, own in axes.items():
        shape = shapes.get(name.removeprefix(PARAMS)) if name.startswith(PARAMS) else None
        if shape is None or not _are_axes(own, len(shape)):
            raise refused(f"has axes of {name[:80]!a} that do not fit its arrays")
    for name, content in files.items():
        if not _SMALL_FILE.fullmatch(name) or not _is_json(content):
            raise refused(f"has {name[:80]!a}, which is no small JSON file of a run")
    return Notes(step, extra, {name: tuple(own) for name, own in axes.items() if own}, files)


def _are_axes(found: Any, count: int) -> bool:
    """A name or null for each dimension; or nothing at all."""
    if found is None:
        return True
    return (
        isinstance(found, list)
        and len(found) == count
        and all(axis is None or isinstance(axis, str) for axis in found)
    )


def _is_json(content: Any) -> bool:
    try:
        return isinstance(content, str) and bool(content.encode()) and _parses(content)
    except (ValueError, RecursionError):
        return False


def _parses(content: str) -> bool:
    json.loads(content)
    return True
