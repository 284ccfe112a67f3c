"""Parameters out to a safetensors file, and in again. No code is ever read: arrays and JSON."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
from safetensors import SafetensorError, safe_open
from safetensors.flax import save_file

from sharding.checkpoint.inspect import FOLDER, open_run
from sharding.checkpoint.names import nested
from sharding.checkpoint.store import Checkpoints
from sharding.errors import UserError

PARAMS = "params/"
_NOTES = "checkpoint"
_SMALL_FILE = re.compile(r"[a-z_]+\.json")


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
      Damaged: the checkpoint is not as it was written.
    """
    checkpoints, which = open_run(text)
    step = checkpoints.choose(which)
    if to.exists():
        raise UserError(f"{to} exists: name another file with --to")
    checkpoints.check(step)
    manifest, reader = checkpoints.manifest(step), checkpoints.reader(step)
    names = [name for name in manifest.arrays if name.startswith(PARAMS)]
    if not names:
        raise UserError(f"checkpoint {step} in {checkpoints.folder} holds no parameters")
    arrays = {name.removeprefix(PARAMS): jnp.asarray(reader.whole(name)) for name in names}
    notes = {
        "step": step,
        "extra": manifest.extra,
        "axes": {name: manifest.arrays[name].axes for name in names},
        "files": {
            path.name: path.read_text()
            for path in sorted(checkpoints.folder.parent.glob("*.json"))
            if _SMALL_FILE.fullmatch(path.name)
        },
    }
    try:
        save_file(arrays, to, metadata={_NOTES: json.dumps(notes)})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {to}: {error}") from error
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
      UserError: not a safetensors file, or a run that has checkpoints.
    """
    if Checkpoints(run / FOLDER, read_only=True).steps():
        raise UserError(f"{run} has checkpoints: name another folder with --run")
    try:
        with safe_open(path, framework="flax") as file:
            found = file.keys()
            arrays: dict[str, jax.Array] = {name: file.get_tensor(name) for name in found}
            notes = json.loads((file.metadata() or {}).get(_NOTES, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a safetensors file that can be read: {error}") from error
    if not arrays:
        raise UserError(f"{path} holds no arrays")
    step = int(notes.get("step", 0))
    axes = {name: tuple(found) for name, found in notes.get("axes", {}).items() if found}
    with Checkpoints(run / FOLDER) as checkpoints:
        state = nested({PARAMS + name: array for name, array in arrays.items()})
        checkpoints.save(step, state, notes.get("extra", {}), axes=axes)
        checkpoints.wait()
    written = []
    for name, content in notes.get("files", {}).items():
        if _SMALL_FILE.fullmatch(name) and not (run / name).exists():
            (run / name).write_text(content)
            written.append(name)
    return {"run": str(run), "step": step, "arrays": len(arrays), "files": written}
