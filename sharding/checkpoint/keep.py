"""Which checkpoints of a run are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping

from sharding.bounds import Count, Size, check_bounds
from sharding.errors import UserError, unknown

SOURCE, ONCE, EACH = "source", "once", "each"
FROZEN = (SOURCE, ONCE, EACH)
"""Where what is not trained is stored."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When a run is saved, and which checkpoints are kept.

    The newest is never removed, nor the newest that is not suspect.

    Attributes:
      every: steps between saves; one is always saved at the end.
      keep: how many of the newest are kept.
      keep_best: how many of least validation loss are kept beside them.
      keep_every: the first at or past each multiple of so many steps is kept for good; 0 for none.
      frozen: where parameters are stored that `optimizer.only` leaves as they are. "source": in the
        checkpoint of the run that they were taken from, or else in checkpoint 0, which a run has
        that was begun with parameters of any other kind. "once": in the first checkpoint of this
        run. "each": in every checkpoint.
    """

    every: Size = 200
    keep: Size = 2
    keep_best: Count = 1
    keep_every: Count = 0
    frozen: str = SOURCE

    def __post_init__(self) -> None:
        check_bounds(self, "checkpoint")
        if self.frozen not in FROZEN:
            raise UserError(f"checkpoint.frozen: {unknown(self.frozen, FROZEN)}")

    def kept(
        self,
        steps: Iterable[int],
        losses: Mapping[int, float],
        suspect: Collection[int] = frozenset(),
    ) -> set[int]:
        """The steps to keep.

        Args:
          steps: all that are saved.
          losses: those of them that have a validation loss. Of equal ones the earlier is best.
          suspect: those that are suspect, see `Manifest`; none of them is in `losses`.
        """
        steps = sorted(steps)
        best = sorted((loss, step) for step, loss in losses.items() if step in steps)
        kept = set(steps[-self.keep :]) | {step for _, step in best[: self.keep_best]}
        kept |= set([step for step in steps if step not in suspect][-1:])
        if self.keep_every:
            firsts = {step // self.keep_every: step for step in reversed(steps)}
            kept |= {step for number, step in firsts.items() if number}
        return kept
