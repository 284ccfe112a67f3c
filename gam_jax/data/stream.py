"""Rows by number, shuffled, batched and read ahead by Grain, from any position.

Grain is imported where a stream is made: who only writes text does not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from absl import flags

from gam_jax.data.base import Batch, Stream
from sharding.errors import UserError

if TYPE_CHECKING:
    import grain

AHEAD = 4
"""Batches read before they are asked for."""


class TrainBatches(Stream):
    """The training stream of a Grain data set, see `Stream`.

    Attributes:
      position: global batches delivered so far.
    """

    def __init__(self, batches: grain.MapDataset, position: int, workers: int) -> None:
        self.position = position
        self._batches: Any = iter(_read_ahead(batches, workers))

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.position += 1
        return batch

    def close(self) -> None:
        """Stops the reading ahead; workers end."""
        self._batches.close()

    def __enter__(self) -> TrainBatches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def endless(source: Any, seed: int, shuffle: bool) -> grain.MapDataset:
    """All rows of a source in an order drawn from the seed, then in another, and so on.

    Args:
      source: has a length, and gives row i as a dict of arrays by `source[i]`.
      seed: 0 to 2**32 - 1.
      shuffle: False keeps the order of the source.

    Raises:
      UserError: a seed out of range.
    """
    import grain

    if not 0 <= seed < 1 << 32:
        raise UserError(f"seed {seed} is out of range: give 0 to {(1 << 32) - 1}")
    dataset = grain.MapDataset.source(source).seed(seed)
    return (dataset.shuffle() if shuffle else dataset).repeat()


def mixed(
    sources: Sequence[Any], weights: Sequence[float], seed: int, shuffle: bool
) -> grain.MapDataset:
    """Rows of several sources in turn, as often as their weights say, each endless by itself."""
    import grain

    streams = [endless(source, seed, shuffle) for source in sources]
    return grain.MapDataset.mix(streams, weights)


def train_stream(
    rows: grain.MapDataset,
    *,
    batch: int,
    process: int = 0,
    processes: int = 1,
    position: int = 0,
    workers: int = 0,
) -> TrainBatches:
    """Batches of an endless sequence of rows.

    Args:
      rows: see `endless` and `mixed`.
      batch: rows of the global batch, B * processes.
      process: which process this is.
      processes: how many there are.
      position: global batches already delivered.
      workers: Grain's worker processes; 0 reads ahead in a thread.

    Raises:
      UserError: the batch does not divide by the processes.
    """
    own = rows_of_process(batch, process, processes)
    # Batches of a process's size in global order: process p takes every one numbered p modulo
    # `processes`, so that a global batch is one from each, in order.
    # drop_remainder: there is none, and without it Grain rounds the endless length up too far.
    endless = rows.batch(own, drop_remainder=True)
    return TrainBatches(endless[position * processes + process :: processes], position, workers)


def validation_stream(
    source: Any,
    *,
    batch: int,
    process: int = 0,
    processes: int = 1,
    limit: int | None = None,
) -> Iterator[Batch]:
    """One pass over a source whose length is a multiple of `batch`.

    Args:
      source: its rows beyond the last have weight 0.
      batch: rows of the global batch, B * processes.
      process: which process this is.
      processes: how many there are.
      limit: global batches at most; None for all.

    Raises:
      UserError: the batch does not divide by the processes.
    """
    import grain

    rows = rows_of_process(batch, process, processes)
    if not len(source):
        return iter(())
    batches = grain.MapDataset.source(source).batch(rows)[process::processes][:limit]
    return iter(_read_ahead(batches, workers=0))


def rows_of_process(batch: int, process: int, processes: int) -> int:
    """Rows of one process.

    Raises:
      UserError: the batch does not divide by the processes.
    """
    if batch < 1 or batch % processes:
        raise UserError(
            f"a global batch of {batch} does not divide among {processes} processes: "
            f"make it a multiple of {processes}"
        )
    if not 0 <= process < processes:
        raise UserError(f"process {process} of {processes}: processes are numbered from 0")
    return batch // processes


def _read_ahead(batches: grain.MapDataset, workers: int) -> grain.IterDataset:
    import grain

    # One thread is enough to slice and stack arrays, and more would fight for the interpreter.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    dataset = batches.to_iter_dataset(options)
    if not workers:
        return dataset
    if not flags.FLAGS.is_parsed():
        # Grain's workers look at a flag, which outside of absl's app.run nobody has parsed.
        flags.FLAGS.mark_as_parsed()
    return dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=AHEAD)
    )
