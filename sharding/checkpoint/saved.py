"""The checkpoints that a folder holds: which there are, and what each says of itself."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sharding.checkpoint.arrays import Reader
from sharding.checkpoint.failures import Damaged, first_line
from sharding.checkpoint.manifest import Manifest, Unreadable, read
from sharding.errors import UserError
from sharding.paths import check_local


class Saved:
    """Checkpoints by step, to be read.

    Args:
      folder: where they are.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        check_local(folder)
        self.folder = folder.absolute()
        self._judged: dict[int, tuple[float | None, str]] = {}

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
        """Of the arrays of a step."""
        return Reader(self.folder / str(step))

    def whole(self, step: int, name: str) -> np.ndarray:
        """An array of a step in this process's memory; its digest is not compared.

        Raises:
          Damaged: it is not what the manifest says, or cannot be read.
        """
        try:
            return self.reader(step).whole(name, self.manifest(step).arrays[name].fact)
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
