"""The checkpoints that a folder holds: which there are, and what each says of itself."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from sharding.checkpoint.arrays import Reader
from sharding.checkpoint.failures import Damaged
from sharding.checkpoint.manifest import Manifest, Unreadable, read
from sharding.errors import UserError


class Saved:
    """Checkpoints by step, to be read.

    Args:
      folder: where they are.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder.absolute()
        self._losses: dict[int, float | None] = {}

    def steps(self) -> list[int]:
        """The steps that are saved, ascending; damaged ones too."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def latest(self) -> int | None:
        """The newest step, None if there is none."""
        return max(self.steps(), default=None)

    def choose(self, which: str) -> int:
        """The step that "latest", "best" (least loss) or a number names.

        Raises:
          UserError: there is no such checkpoint.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"no checkpoint in {self.folder}: the run has not saved one yet")
        if which == "latest":
            return steps[-1]
        if which == "best":
            losses = self._known_losses()
            return min(losses, key=lambda step: (losses[step], step), default=steps[-1])
        if not which.isdecimal() or int(which) not in steps:
            raise UserError(
                f"no checkpoint '{which}' in {self.folder}: say latest, best, or one of {steps}"
            )
        return int(which)

    def best_loss(self) -> float:
        """The least validation loss among the checkpoints; infinite if none has one."""
        return min(self._known_losses().values(), default=math.inf)

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

    def _known_losses(self) -> dict[int, float]:
        """Of steps whose manifest can be read; whoever uses another one will be told."""
        for step in self.steps():
            if step not in self._losses:
                try:
                    self._losses[step] = self.manifest(step).loss
                except UserError:
                    continue
        steps = self.steps()
        return {s: loss for s, loss in self._losses.items() if loss is not None and s in steps}

    def _damaged(self, step: int, reason: str) -> Damaged:
        return Damaged(f"checkpoint {step} in {self.folder}", reason)
