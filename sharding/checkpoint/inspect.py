"""What a run's checkpoints hold."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np

from sharding.checkpoint.digest import add, digest, shown
from sharding.checkpoint.failures import Damaged
from sharding.checkpoint.manifest import Stored, Unreadable, check_files
from sharding.checkpoint.names import Fact
from sharding.checkpoint.store import Checkpoints
from sharding.errors import UserError
from sharding.paths import check_local

FOLDER = "checkpoints"


def open_run(text: str) -> tuple[Checkpoints, str]:
    """The checkpoints of RUN or RUN@WHICH (a step, latest, best), to look at; and which.

    A run is a folder that holds `checkpoints/`, or such a folder itself.

    Raises:
      UserError: there is no such folder.
    """
    check_local(text)
    path, _, which = text.partition("@")
    folder = pathlib.Path(path)
    inner = folder / FOLDER
    if not inner.is_dir() and folder.name != FOLDER:
        raise UserError(f"{folder} has no {FOLDER}/: name the folder of a run")
    return Checkpoints(inner if inner.is_dir() else folder, read_only=True), which or "latest"


def inspect(text: str, verify: bool) -> dict[str, Any]:
    """All steps of a run, and every array of one of them.

    Mean and standard deviation are over all numbers of an array; not of random keys. To look at
    them reads every array once.

    Args:
      text: RUN or RUN@WHICH.
      verify: compare every file, of every step, and every array of that one with its checksum.

    Returns:
      JSON values. "damaged" says what is wrong, by step; it is there with `verify`.

    Raises:
      UserError: no such run or step.
      Damaged: without `verify`, the manifest cannot be read.
    """
    checkpoints, which = open_run(text)
    step = checkpoints.choose(which)
    result: dict[str, Any] = {"folder": str(checkpoints.folder), "step": step}
    damaged = _damaged_files(checkpoints) if verify else {}
    result["steps"] = [_summary(checkpoints, s, damaged) for s in checkpoints.steps()]
    try:
        manifest = checkpoints.manifest(step)
    except Damaged:
        if not verify:
            raise
        return {**result, "arrays": [], "damaged": damaged}
    result["loss"] = manifest.loss
    result["extra"] = manifest.extra
    result["arrays"] = []
    for name, stored in sorted(manifest.arrays.items()):
        row = describe(name, stored)
        try:
            row.update(_values(checkpoints, step, name, stored, verify))
        except (Unreadable, ValueError, OSError) as error:
            if isinstance(error, UserError) and not verify:
                raise  # it stands in another checkpoint, which is gone
            told = isinstance(error, (Unreadable, UserError))
            reason = str(error) if told else "cannot be read"
            if not verify:
                raise Damaged(f"'{name}' of checkpoint {step}", reason) from error
            damaged.setdefault(str(step), []).append(f"'{name}' {reason}")
        result["arrays"].append(row)
    return {**result, "damaged": damaged} if verify else result


def describe(name: str, stored: Stored) -> dict[str, Any]:
    """What the manifest says of an array."""
    return {
        "name": name,
        "shape": list(stored.fact.shape),
        "dtype": stored.fact.key or stored.fact.dtype,
        "axes": stored.axes,
        "bytes": nbytes(stored.fact),
        "digest": stored.digest,
        **({"in": f"{stored.place.folder}/{stored.place.step}"} if stored.place else {}),
    }


def nbytes(fact: Fact) -> int:
    """Of an array, not compressed."""
    return math.prod(fact.shape) * np.dtype(fact.dtype).itemsize


def _summary(checkpoints: Checkpoints, step: int, damaged: dict[str, list[str]]) -> dict[str, Any]:
    row: dict[str, Any] = {"step": step}
    try:
        found = checkpoints.manifest(step)
        row.update(bytes=found.bytes, arrays=len(found.arrays), loss=found.loss)
        if found.suspect:
            row.update(suspect=found.suspect)
    except Damaged as error:
        row.update(damaged=error.reason)
    if str(step) in damaged:
        row.update(damaged="; ".join(damaged[str(step)]))
    return row


def _damaged_files(checkpoints: Checkpoints) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for step in checkpoints.steps():
        try:
            check_files(checkpoints.folder / str(step), checkpoints.manifest(step))
        except Unreadable as error:
            found[str(step)] = [str(error)]
        except Damaged as error:
            found[str(step)] = [error.reason]
    return found


def _values(
    checkpoints: Checkpoints, step: int, name: str, stored: Stored, verify: bool
) -> dict[str, Any]:
    """Mean and standard deviation, block by block."""
    total = square = 0.0
    parts = []
    for block, values in checkpoints.reader(step).blocks(name, stored.fact):
        if verify:
            parts.append(digest(values, [lo for lo, _ in block]))
        numbers = values.astype(np.float64)
        total += float(numbers.sum())
        square += float(np.square(numbers).sum())
    if verify and shown(add(parts)) != stored.digest:
        raise Unreadable("has other values than were saved")
    count = math.prod(stored.fact.shape)
    if stored.fact.key or not count:
        return {}
    mean = total / count
    return {"mean": mean, "std": math.sqrt(max(square / count - mean * mean, 0.0))}
