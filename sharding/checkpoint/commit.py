"""How a checkpoint becomes visible: all or nothing, whatever dies on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Mapping

from sharding import processes
from sharding.checkpoint.arrays import FOLDER, own_files
from sharding.checkpoint.digest import add, shown
from sharding.checkpoint.manifest import File, Manifest, files_of, hash_file, write
from sharding.json_file import read_json

WAIT_SECONDS = 600
"""How long the first process waits for what the others have written."""


def complete(
    partial: pathlib.Path, target: pathlib.Path, digests: Mapping[str, int], manifest: Manifest
) -> None:
    """Hashes the files, writes the manifest, and renames the folder. All processes call it.

    Each process hashes what it has written itself; the first gathers what the others tell.

    Args:
      partial: where the arrays are, all of them written.
      target: its name once it is whole.
      digests: this process's part of the digest of each array.
      manifest: all but digests and files.
    """
    paths = [path.relative_to(partial) for path in files_of(partial / FOLDER)]
    own = own_files(paths, processes.rank())
    files = {path.as_posix(): hash_file(partial / path) for path in own}
    if not processes.is_first():
        _tell(partial, digests, files)
        return
    parts = [digests]
    for told, theirs in _others(partial):
        files.update(theirs)
        parts.append(told)
    arrays = {
        name: dataclasses.replace(stored, digest=shown(add([part[name] for part in parts])))
        for name, stored in manifest.arrays.items()
    }
    write(partial, dataclasses.replace(manifest, arrays=arrays, files=dict(sorted(files.items()))))
    _sync(partial)
    os.replace(partial, target)
    _sync(target.parent)


def _tell(partial: pathlib.Path, digests: Mapping[str, int], files: Mapping[str, File]) -> None:
    """Leaves what this process has written where the first process looks for it."""
    values = {"digests": digests, "files": {n: [f.bytes, f.sha256] for n, f in files.items()}}
    path = partial / f"part.{processes.rank()}"
    path.with_suffix(f"{path.suffix}.new").write_text(json.dumps(values))
    os.replace(path.with_suffix(f"{path.suffix}.new"), path)


def _others(partial: pathlib.Path) -> list[tuple[dict[str, int], dict[str, File]]]:
    """What the other processes have told; their notes are taken away."""
    found, deadline = [], time.monotonic() + WAIT_SECONDS
    for rank in range(1, processes.count()):
        path = partial / f"part.{rank}"
        while not path.exists():
            if time.monotonic() > deadline:
                raise OSError(f"process {rank} has not told what it wrote")
            time.sleep(0.01)
        values = read_json(path)
        path.unlink()
        found.append((values["digests"], {n: File(*f) for n, f in values["files"].items()}))
    return found


def _sync(folder: pathlib.Path) -> None:
    """Makes the names in a folder outlast a loss of power."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
