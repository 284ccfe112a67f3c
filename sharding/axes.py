"""What a program of one device knows of the mesh around it."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Axes:
    """Names of the mesh axes that a program of one device runs over; None means whole.

    `Axes()` is how a notebook calls a layer: no mesh at all, the same code.

    Attributes:
      data: axis that splits the batch; several where it is in levels, the outer one first.
      seq: axis that splits the tokens of each sequence.
      residual: axis that further splits the tokens of the residual stream, between layers; it is
        one that splits layers inside (Megatron's sequence parallelism, arXiv 2205.05198).
      streams: how many parallel streams the rows of this device are, as the outer factor of
        (stream, row); 0 where they are the batch's rows and no more.
      expert: axis that further splits the batch, between layers whose experts it splits.
      splits: (logical axis, mesh axis) for every logical axis that is split, see `rules`.
      turns: chunks of layers that a device of the axis of `layer` holds, see `sharding.pipeline`.
      layers: how many layers each chunk has, where these differ; a chunk then has slots for as
        many as the fullest. () where all have as many.
      overlap: how products at the ends of a layer go along with the messages over `residual`:
        "ring" or "two_way", see `sharding.overlap`; None for one after the other.
      backend: what the devices are, "cpu", "gpu" or "tpu", where an op has a program for each;
        None for JAX's default.
    """

    data: str | tuple[str, ...] | None = None
    seq: str | None = None
    residual: str | None = None
    streams: int = 0
    expert: str | None = None
    splits: tuple[tuple[str, str], ...] = ()
    turns: int = 1
    layers: tuple[int, ...] = ()
    overlap: str | None = None
    backend: str | None = None

    def of(self, logical: str) -> str | None:
        """The mesh axis that splits a logical axis ("channel", "slot", "ffn", "vocab", ...)."""
        return dict(self.splits).get(logical)

    @property
    def within_stage(self) -> Axes:
        """The axes as the layers of one stage know them: that of stages is not among them."""
        splits = tuple(pair for pair in self.splits if pair[0] != "layer")
        return dataclasses.replace(self, splits=splits, turns=1, layers=())

    @property
    def rows(self) -> tuple[str, ...]:
        """The axes that split the rows of a batch, the outer one first."""
        levels = self.data if isinstance(self.data, tuple) else (self.data,)
        return _present(*levels, self.expert)

    @property
    def sequences(self) -> tuple[str, ...]:
        """The axes that split what layers see as sequences: rows, and parallel streams of them."""
        return (*_present(self.of("stream")), *self.rows)

    @property
    def batch(self) -> tuple[str, ...]:
        """The axes over which tokens are spread, those that a mean loss must be summed over."""
        return (*self.rows, *_present(self.seq))

    @property
    def tokens(self) -> tuple[str, ...]:
        """The axes that split the tokens of the residual stream, the outer one first."""
        return _present(self.seq, self.residual)

    @property
    def all(self) -> tuple[str, ...]:
        """Every mesh axis named here."""
        return tuple(dict.fromkeys((*self.batch, *self.tokens, *dict(self.splits).values())))


def _present(*names: str | None) -> tuple[str, ...]:
    return tuple(name for name in names if name is not None)
