"""Which mesh axis splits what."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Axes:
    """Names of the mesh axes that a program of one device runs over; None means whole.

    `Axes()` is how a notebook calls a layer: no mesh at all, the same code.

    Attributes:
      data: axis that splits the batch.
      seq: axis that splits the tokens of each sequence.
      tensor: axis that splits channels, memory slots, hidden units and the vocabulary.
    """

    data: str | None = None
    seq: str | None = None
    tensor: str | None = None

    @property
    def batch(self) -> tuple[str, ...]:
        """The axes over which tokens are spread, those that a mean loss must be summed over."""
        return tuple(axis for axis in (self.data, self.seq) if axis is not None)


MESH_AXES = Axes(data="data", seq="seq", tensor="tensor")
