"""Which mesh axis splits what."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh


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


def axes_of(mesh: Mesh) -> Axes:
    """The axes along which `mesh` has more than one device.

    An axis of one device splits nothing, so it is None: no collective is sent to oneself.
    """
    return Axes(**{name: name for name, size in mesh.shape.items() if size > 1})
