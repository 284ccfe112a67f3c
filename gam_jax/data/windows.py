"""Windows of tokens, as rows of a training stream and of a validation stream.

A window of T tokens at offset s has inputs tokens[s : s+T] and targets tokens[s+1 : s+T+1].
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from gam_jax.data.base import Batch
from gam_jax.data.stream import TrainBatches, endless, train_stream, validation_stream
from sharding.errors import UserError

if TYPE_CHECKING:
    from gam_jax.data.text import Text


class TokenRows:
    """A random access source for Grain that reads from arrays, of tokens and of what counts.

    A memory map is reopened, not copied, in a worker process.
    """

    def __getstate__(self) -> dict[str, Any]:
        # A slice of a map forgets where in the file it starts: it is copied.
        return {
            name: _MapOf(value)
            if isinstance(value, np.memmap) and isinstance(value.base, mmap.mmap)
            else value
            for name, value in self.__dict__.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            self.__dict__[name] = value.open() if isinstance(value, _MapOf) else value


class Windows(TokenRows):
    """Full windows of a token array.

    Args:
      tokens: [N] of any integer type.
      window: T.
      stride: tokens from one window's start to the next.
    """

    def __init__(self, tokens: np.ndarray, window: int, stride: int) -> None:
        self._tokens, self._window, self._stride = tokens, window, stride

    def __len__(self) -> int:
        return max(0, (len(self._tokens) - self._window - 1) // self._stride + 1)

    def __getitem__(self, index: SupportsIndex) -> Batch:
        start = index.__index__() * self._stride
        chunk = self._tokens[start : start + self._window + 1].astype(np.int32)
        weights = np.ones(self._window, np.float32)
        return {"inputs": chunk[:-1], "targets": chunk[1:], "weights": weights}


class _MapOf:
    """Where a memory map is, so that another process can map the same file."""

    def __init__(self, tokens: np.memmap) -> None:
        self._path, self._dtype = Path(str(tokens.filename)), tokens.dtype
        self._offset, self._shape = tokens.offset, tokens.shape

    def open(self) -> np.ndarray:
        return np.memmap(self._path, self._dtype, "r", self._offset, self._shape)


class ScoredWindows(Windows):
    """Windows in which every token but the first is scored exactly once.

    The last window is padded, and windows of no weight follow until there are a multiple of
    `multiple`. Where windows overlap (stride < window), a token is scored in the first that holds
    it as a target, but the tokens of the first window all in that one. Where they leave gaps
    (stride > window, the GAM paper's blocks), the tokens between them are not scored.
    """

    def __init__(self, tokens: np.ndarray, window: int, stride: int, multiple: int) -> None:
        super().__init__(tokens, window, stride)
        self._multiple = multiple

    def __len__(self) -> int:
        return -(-self.windows // self._multiple) * self._multiple

    @property
    def windows(self) -> int:
        """Windows that score at least one token."""
        targets = len(self._tokens) - 1
        fresh = max(0, self._window - self._stride)  # targets of a window seen in the one before
        return max(0, -(-(targets - fresh) // self._stride)) or int(targets > 0)

    def __getitem__(self, index: SupportsIndex) -> Batch:
        number = index.__index__()
        start = number * self._stride
        held = self._tokens[start : start + self._window + 1] if number < self.windows else []
        chunk = np.zeros(self._window + 1, np.int32)
        chunk[: len(held)] = held
        weights = np.zeros(self._window, np.float32)
        first = max(0, self._window - self._stride) if number else 0
        weights[first : max(len(held) - 1, first)] = 1
        return {"inputs": chunk[:-1], "targets": chunk[1:], "weights": weights}


def windows(tokens: np.ndarray, window: int, stride: int) -> Windows:
    """The full windows of a token array.

    Raises:
      UserError: there are fewer tokens than one window needs (T + 1).
    """
    source = Windows(tokens, window, stride)
    if not len(source):
        raise UserError(
            f"the training text is {len(tokens)} tokens long, and one window needs {window + 1}: "
            "give more text or set a smaller data.window"
        )
    return source


def train_batches(
    source: TokenRows,
    config: Text,
    *,
    batch: int,
    seed: int,
    process: int = 0,
    processes: int = 1,
    position: int = 0,
) -> TrainBatches:
    """The training stream: all rows in an order drawn from the seed, then in another, ...

    The rows of processes 0, 1, ... in order are the rows of the one-process batch. A batch may
    hold the last rows of one epoch and the first of the next, so none is short.

    Args:
      source: of rows that each are whole.
      config: shuffle and workers. With workers, a script must keep what it runs under
        `if __name__ == "__main__"`: each worker imports it again.
      batch: rows of the global batch, B * processes.
      seed: of the shuffle, 0 to 2**32 - 1.
      process: which process this is.
      processes: how many there are.
      position: global batches already delivered.

    Returns:
      An iterator of dicts: inputs and targets int32 [B, T], weights float32 [B, T], ...

    Raises:
      UserError: the batch does not divide by the processes.
    """
    return train_stream(
        endless(source, seed, config.shuffle),
        batch=batch,
        process=process,
        processes=processes,
        position=position,
        workers=config.workers,
    )


def validation_batches(
    tokens: np.ndarray,
    config: Text,
    *,
    batch: int,
    process: int = 0,
    processes: int = 1,
    limit: int | None = None,
) -> Iterator[Batch]:
    """One pass over a split in order; every token after the first has weight 1 exactly once.

    Shapes are fixed: the last batch is padded with tokens 0 of weight 0. With a stride larger
    than the window the tokens between windows have no weight (see `ScoredWindows`).

    Args:
      tokens: [N] tokens of the split.
      config: window and stride.
      batch: rows of the global batch, B * processes.
      process: which process this is.
      processes: how many there are.
      limit: global batches at most; None for all.

    Returns:
      An iterator of dicts as `train_batches` gives them, the same number for each process.

    Raises:
      UserError: the batch does not divide by the processes.
    """
    source = ScoredWindows(tokens, config.window, config.step, batch)
    return validation_stream(source, batch=batch, process=process, processes=processes, limit=limit)
