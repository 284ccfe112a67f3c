"""The checkpoints that a folder holds: which there are, and what each says of itself."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sharding.checkpoint.arrays import Reader
from sharding.checkpoint.failures import Damaged, first_line
from sharding.checkpoint.manifest import Manifest, Place, Stored, Unreadable, read
from sharding.errors import UserError
from sharding.paths import check_local

NAMED = ".named"
"""Beside a checkpoint, an empty file: other runs read from it, so that it is not pruned."""
OTHER_VALUES = "holds other values than when it was named"
"""Of another checkpoint, in which an array was left."""


class Saved:
    """Checkpoints by step, to be read.

    Args:
      folder: where they are.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        check_local(folder)
        self.folder = folder.absolute()
        self._judged: dict[int, tuple[float | None, str]] = {}
        self._others: dict[pathlib.Path, Manifest] = {}

    def steps(self) -> list[int]:
        """The steps that are saved, ascending; damaged ones too."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def latest(self) -> int | None:
        """The newest step, None if there is none."""
        return max(self.steps(), default=None)

    def choose(self, which: str) -> int:
        """The step that a word or a number names.

        Args:
          which: "latest"; "latest-good", the newest that is not suspect; "best", of those the one
            of least loss, or the newest where none has any; or a step.

        Raises:
          UserError: there is no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.folder}: the run has not saved one yet")
        if which == "latest":
            return steps[-1]
        if which in ("best", "latest-good"):
            good = [step for step in steps if not self.suspect(step)]
            if not good:
                raise UserError(
                    f"every checkpoint in {self.folder} is suspect: name one of {steps} if you "
                    f"want it all the same"
                )
            losses = self.losses() if which == "best" else {}
            return min(losses, key=lambda step: (losses[step], step), default=good[-1])
        if not (which.isdecimal() and which.isascii() and int(which[:20]) in steps):
            raise UserError(
                f"no checkpoint '{which}' in {self.folder}: say latest, best, or one of {steps}"
            )
        return int(which)

    def best_loss(self) -> float:
        """The least validation loss among those not suspect; infinite if none has one."""
        return min(self.losses().values(), default=math.inf)

    def manifest(self, step: int) -> Manifest:
        """What a checkpoint holds.

        Raises:
          UserError: no such checkpoint.
          Damaged: its manifest cannot be read.
        """
        if step not in self.steps():
            raise UserError(f"no checkpoint of step {step} in {self.folder}; have {self.steps()}")
        try:
            found = read(self.folder / str(step))
        except Unreadable as error:
            raise self._damaged(step, str(error)) from error
        if found.step != step:
            raise self._damaged(step, f"it was saved as step {found.step}")
        return found

    def extra(self, step: int) -> Mapping[str, Any]:
        """The JSON values of a step; raises as `manifest`."""
        return self.manifest(step).extra

    def reader(self, step: int) -> Reader:
        """Of the arrays of a step, also of those that stand in other checkpoints."""
        arrays = self.manifest(step).arrays
        return Reader(self.folder / str(step), lambda name: self.holder(step, name, arrays[name]))

    def holder(self, step: int, name: str, stored: Stored) -> pathlib.Path:
        """The folder of the checkpoint in which an array stands: that of the step, or another.

        Args:
          step: of the checkpoint that names it.
          name: of the array.
          stored: what that checkpoint says of it.

        Raises:
          UserError: the other checkpoint is gone, or holds other values.
        """
        place, reason = stored.place, "is not there"
        if place is None:
            return self.folder / str(step)
        near = pathlib.Path(os.path.normpath(self.folder / place.near))
        for folder in dict.fromkeys((near, pathlib.Path(place.folder))):
            path = folder / str(place.step)
            if not path.is_dir():
                continue
            try:
                found = self.other(path).arrays.get(name)
            except Unreadable as error:
                reason = f"is damaged ({error})"
                continue
            if found == dataclasses.replace(stored, place=None, axes=found and found.axes):
                return path
            reason = OTHER_VALUES
        raise self.not_there(step, name, place, reason)

    def not_there(self, step: int, name: str, place: Place, reason: str) -> UserError:
        """An array that cannot be read from where it stands, and how to mend that."""
        where = pathlib.Path(place.folder) / str(place.step)
        return UserError(
            f"checkpoint {step} in {self.folder} leaves '{name}' in {where}, which {reason}: bring "
            f"that checkpoint back there as it was, or link it from where it is now (ln -s)"
        )

    def standing(self, step: int) -> dict[str, Stored]:
        """The arrays of a step, each with the place where it stands.

        Raises:
          UserError: see `holder` and `manifest`.
        """
        found = {}
        for name, stored in self.manifest(step).arrays.items():
            holder = self.holder(step, name, stored)
            place = Place(str(holder.parent), int(holder.name))
            found[name] = dataclasses.replace(stored, place=place)
        return found

    def pin(self, step: int) -> bool:
        """Marks a checkpoint as one that others read from, which no run removes.

        Returns:
          Whether that could be written; the file may be removed by hand when no run needs it.
        """
        try:
            (self.folder / f"{step}{NAMED}").touch()
        except OSError:
            return False
        return True

    def other(self, path: pathlib.Path) -> Manifest:
        """What another checkpoint says of itself; Unreadable if it cannot."""
        if path not in self._others:
            self._others[path] = read(path)
        return self._others[path]

    def whole(self, step: int, name: str) -> np.ndarray:
        """An array of a step in this process's memory; its digest is not compared.

        Raises:
          Damaged: it is not what the manifest says, or cannot be read.
        """
        reader, fact = self.reader(step), self.manifest(step).arrays[name].fact
        try:
            return reader.whole(name, fact)
        except UserError:  # it stands in another checkpoint, which is gone
            raise
        except (OSError, ValueError) as error:  # what TensorStore raises
            where = f"'{name}' of checkpoint {step} in {self.folder}"
            raise Damaged(where, f"it cannot be read: {first_line(error)}") from error

    def suspect(self, step: int) -> str:
        """Why a checkpoint is suspect; empty if it is not, or if its manifest cannot be read."""
        return self._judge(step)[1]

    def losses(self) -> dict[int, float]:
        """The validation losses of the steps that have any and are not suspect."""
        found = {step: self._judge(step) for step in self.steps()}
        return {s: loss for s, (loss, suspect) in found.items() if loss is not None and not suspect}

    def _judge(self, step: int) -> tuple[float | None, str]:
        """Loss and suspicion of a step; nothing where its manifest cannot be read: whoever uses
        that checkpoint will be told."""
        if step not in self._judged:
            try:
                found = self.manifest(step)
            except UserError:
                return None, ""
            self._judged[step] = found.loss, found.suspect
        return self._judged[step]

    def _damaged(self, step: int, reason: str) -> Damaged:
        return Damaged(f"checkpoint {step} in {self.folder}", reason)
