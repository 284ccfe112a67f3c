"""Whether a run has gone wrong, and what a person can do then."""

from __future__ import annotations

import collections
import math
import statistics
from collections.abc import Iterable
from typing import Any

from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder
from sharding.checkpoint import Checkpoints
from sharding.errors import UserError

WINDOW = 100
"""Steps whose gradient norms a step's is compared with."""
RATIO = 100.0
"""A norm above so many times their median is a spike."""


class GradientNorms:
    """The gradient norms of the last steps. They stay on the devices until a save asks for them.

    Args:
      norms: of the steps before the first one.
    """

    def __init__(self, norms: Iterable[float] = ()) -> None:
        self._norms: collections.deque[Any] = collections.deque(norms, maxlen=2 * WINDOW)
        self._unsaved = 0

    def add(self, norm: Any) -> None:
        """That of the next step, a scalar on any device."""
        self._norms.append(norm)
        self._unsaved = min(self._unsaved + 1, WINDOW)

    def spike(self, step: int) -> str:
        """Why a save at `step`, the last one added, is suspect; empty if it is not.

        It is if one of the steps since the last save, 100 at most, has a norm above 100 times the
        median of the 100 steps before that one, or one that is not finite.
        """
        norms = self.numbers()
        for place in range(len(norms) - self._unsaved, len(norms)):
            before = [x for x in norms[max(0, place - WINDOW) : place] if math.isfinite(x)]
            median = statistics.median(before) if before else 0.0
            if not math.isfinite(norms[place]) or (median and norms[place] > RATIO * median):
                return (
                    f"the gradient norm of step {step - len(norms) + 1 + place} was "
                    f"{norms[place]:.3g}, and {median:.3g} the median before it"
                )
        return ""

    def numbers(self) -> list[float]:
        """All of them, read from the devices."""
        read = [float(norm) for norm in self._norms]
        self._norms = collections.deque(read, maxlen=2 * WINDOW)
        return read

    def last(self) -> list[float]:
        """Those that a run which goes on from here must know."""
        return self.numbers()[-WINDOW:]

    def saved(self) -> None:
        """What was added is in a checkpoint now."""
        self._unsaved = 0

    def lost(self) -> None:
        """A save has failed: the next one answers for its steps too."""
        self._unsaved = min(len(self._norms), WINDOW)


class Diverged(UserError):
    """A run whose loss, gradients or parameters are not finite."""


def diverged(
    what: str, step: int, experiment: Experiment, folder: RunFolder, checkpoints: Checkpoints
) -> Diverged:
    """The error of a run that has gone wrong, with flags by which it goes on.

    Args:
      what: is wrong, as "the loss of step 7 is nan".
      step: at which it was seen.
      experiment: of the run.
      folder: of the run.
      checkpoints: of the run.
    """
    rate = experiment.optimizer.learning_rate / 10
    lower = f"--change=optimizer.learning_rate --config.optimizer.learning_rate={rate:.3g}"
    steps = checkpoints.steps()
    good = [found for found in steps if not checkpoints.suspect(found)]
    if good:
        mend = (
            f"go on at a lower rate by --resume=latest-good {lower}, or without these batches by "
            f"--resume=latest-good --skip={step - good[-1]}"
        )
        return Diverged(f"{what} (checkpoint {good[-1]} is kept): {mend}")
    kept = f"checkpoint {steps[-1]} is suspect" if steps else "no checkpoint was saved yet"
    if folder.init.exists():
        return Diverged(f"{what} ({kept}): begin another run with --run at a lower rate")
    return Diverged(f"{what} ({kept}): begin again at a lower rate by --resume=0 {lower}")
