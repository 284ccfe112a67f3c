"""Arrays that a checkpoint names and does not hold: they stand in another one, bit for bit."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping

from sharding import processes
from sharding.checkpoint.arrays import totals
from sharding.checkpoint.failures import Damaged
from sharding.checkpoint.manifest import Place, Stored, Unreadable, check_files
from sharding.checkpoint.saved import Saved
from sharding.errors import UserError


def held(saved: Saved, steps: Iterable[int]) -> dict[str, Stored]:
    """The arrays that some checkpoints hold themselves, with their places; the first that does.

    Damaged checkpoints hold none.
    """
    found: dict[str, Stored] = {}
    for step in steps:
        try:
            arrays = saved.manifest(step).arrays
        except Damaged:
            continue
        place = Place(str(saved.folder), step)
        for name, stored in arrays.items():
            if stored.place is None:
                found.setdefault(name, dataclasses.replace(stored, place=place))
    return found


def unchanged(
    folder: pathlib.Path,
    known: Mapping[str, Stored],
    arrays: Mapping[str, Stored],
    digests: Mapping[str, int],
) -> dict[str, Stored]:
    """Of arrays that are to be saved those that stand elsewhere already. All processes call it.

    Args:
      folder: of the checkpoints that are to name them.
      known: what stands elsewhere, with its places.
      arrays: what is to be saved.
      digests: this process's part of its digests.
    """
    alike = {name: x for name, x in known.items() if x.fact == arrays[name].fact}
    same = totals({name: digests[name] for name in alike}) if alike else {}
    found = {}
    for name, stored in alike.items():
        assert stored.place is not None
        if same[name] == stored.digest:
            near = os.path.relpath(stored.place.folder, folder)
            place = dataclasses.replace(stored.place, near=near)
            found[name] = dataclasses.replace(arrays[name], place=place)
    return found


def check(saved: Saved, step: int, wanted: Mapping[str, Stored], whole: set[pathlib.Path]) -> None:
    """Reads every byte of the checkpoints in which arrays of a step stand, the processes a share.

    Args:
      saved: the checkpoints that name them.
      step: which of these.
      wanted: arrays of it.
      whole: checkpoints that were read already; those that are found whole are added.

    Raises:
      UserError: one is gone, or is not as it was.
    """
    reason = ""
    try:
        others = {saved.holder(step, name, x): name for name, x in wanted.items() if x.place}
        for path, name in others.items():
            if path in whole:
                continue
            try:
                manifest = saved.other(path)
                check_files(path, manifest, processes.rank(), processes.count())
            except Unreadable as error:
                place = Place(str(path.parent), int(path.name))
                told = f"is damaged ({error})"
                raise saved.not_there(step, name, place, told) from error
            whole.add(path)
    except UserError as error:
        reason = str(error)
    if reason := processes.first_said(reason):
        raise UserError(reason)
