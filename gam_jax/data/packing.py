"""Rows of whole documents: several in a row where they fit, or one.

A document of tokens t_1 ... t_L is the sequence s = [separator, t_1, ..., t_L, separator] (or the
tokens alone, where there are no separators), of which each token but the first is predicted once.
A sequence with more than T of these is cut into pieces of T predictions, each of which begins with
the last token of the piece before. A piece begins anew in its row, as a document does. Where not
all tokens count, a piece in which none does is left out.
"""

from __future__ import annotations

from typing import SupportsIndex

import numpy as np

from gam_jax.data.base import Batch
from gam_jax.data.windows import TokenRows
from sharding.errors import UserError


def pieces(lengths: np.ndarray, window: int, separators: bool) -> np.ndarray:
    """The pieces of documents, in order: [P, 2] of (place of its first token, predictions).

    Args:
      lengths: tokens of each document, which stand one after another in an array, a separator
        between each two if there are separators.
      window: the most predictions in a piece, T.
      separators: whether there are. Places then begin at -1, the separator before the first.
    """
    kept = lengths > (0 if separators else 1)
    between = int(separators)
    begins = np.cumsum(lengths + between) - lengths - between - between
    begins, counts = begins[kept], lengths[kept] + (1 if separators else -1)
    each = -(-counts // window)
    number = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
    first = number * window
    return np.stack(
        [np.repeat(begins, each) + first, np.minimum(np.repeat(counts, each) - first, window)],
        axis=1,
    )


def best_fit(sizes: np.ndarray, window: int) -> np.ndarray:
    """The row of each piece: the longest pieces first, each into the fullest row that has room.

    Best-fit decreasing, as Ding et al. 2024 (arXiv 2404.10830, "best-fit packing") use it; it is
    the same for the same sizes.

    Args:
      sizes: of the pieces, 1 to `window`.
      window: the room of an empty row.
    """
    rows = np.empty(len(sizes), np.int64)
    with_room: list[list[int]] = [[] for _ in range(window + 1)]
    some, count = 0, 0  # bit r of `some`: a row has room r
    for piece in np.argsort(-sizes, kind="stable"):
        size = int(sizes[piece])
        fits = some >> size
        if fits:
            room = size + (fits & -fits).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                some &= ~(1 << room)
        else:
            room, row, count = window, count, count + 1
        rows[piece] = row
        left = room - size
        if left:
            with_room[left].append(row)
            some |= 1 << left
    return rows


class DocumentRows(TokenRows):
    """Rows of documents: a random access source for Grain.

    A row has inputs and targets, int32 [T]; weights, float32 [T], 0 where the row is empty or a
    target does not count; and,
    where it may hold several pieces, starts, bool [T]: where each begins, and the empty rest.

    Args:
      tokens: [N], documents one after another.
      lengths: tokens of each document.
      window: T.
      separator: the token between documents; None where there is none.
      packed: whether a row holds several pieces.
      multiple: rows of no weight follow until there are a multiple of it.
      counts: [N], 1 where a token counts; None where all do. A separator after the last does.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        lengths: np.ndarray,
        window: int,
        separator: int | None,
        packed: bool,
        multiple: int = 1,
        counts: np.ndarray | None = None,
    ) -> None:
        self._tokens, self._window, self._packed = tokens, window, packed
        self._separator, self._multiple, self._counts = separator, multiple, counts
        found = pieces(lengths, window, separator is not None)
        if counts is not None:
            found = found[_counted(found, counts) > 0]
        rows = best_fit(found[:, 1], window) if packed else np.arange(len(found))
        order = np.argsort(rows, kind="stable")
        self._pieces = found[order]
        self._ends = np.cumsum(np.bincount(rows)) if len(rows) else np.zeros(0, np.int64)

    @property
    def filled(self) -> int:
        """Rows that hold something."""
        return len(self._ends)

    @property
    def waste(self) -> float:
        """The share of all places that is empty."""
        held = int(self._pieces[:, 1].sum())
        return 1 - held / (self.filled * self._window) if held else 0.0

    def __len__(self) -> int:
        return -(-self.filled // self._multiple) * self._multiple

    def __getitem__(self, index: SupportsIndex) -> Batch:
        number, window = index.__index__(), self._window
        row = {
            "inputs": np.zeros(window, np.int32),
            "targets": np.zeros(window, np.int32),
            "weights": np.zeros(window, np.float32),
        }
        starts = np.zeros(window, bool)
        place = 0
        for begin, size in self._pieces[self._of(number)]:
            own = slice(place, place + size)
            held = self._held(self._tokens, int(begin), int(size) + 1)
            row["inputs"][own], row["targets"][own] = held[:-1], held[1:]
            row["weights"][own] = 1
            if self._counts is not None:
                row["weights"][own] = self._held(self._counts, int(begin) + 1, int(size), 1)
            starts[place] = True
            place += size
        if place < window:
            starts[place] = True
        return row | ({"starts": starts} if self._packed else {})

    def spans(self, row: int) -> list[tuple[int, int]]:
        """Where each piece of a row begins and ends."""
        ends = np.cumsum(self._pieces[self._of(row), 1])
        return list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)) if len(ends) else []

    def _of(self, row: int) -> slice:
        """The pieces of a row."""
        if row >= self.filled:
            return slice(0)
        return slice(self._ends[row - 1] if row else 0, self._ends[row])

    def _held(
        self, array: np.ndarray, begin: int, count: int, outside: int | None = None
    ) -> np.ndarray:
        """Values from a place on; outside of the array, that value, or the separator."""
        held = np.full(count, (self._separator or 0) if outside is None else outside, np.int32)
        first, last = max(begin, 0), min(begin + count, len(array))
        held[first - begin : last - begin] = array[first:last]
        return held


def _counted(found: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """How many predictions of each piece count."""
    before = np.concatenate([[0], np.cumsum(counts, dtype=np.int64), [0]])
    before[-1] = before[-2] + 1  # the separator after the last
    begins, sizes = found[:, 0], found[:, 1]
    return before[begins + sizes + 1] - before[begins + 1]


def first_documents(
    lengths: np.ndarray, tokens: int, separators: bool, whole: bool = False
) -> np.ndarray:
    """The lengths of the documents in the first `tokens` tokens.

    Args:
      lengths: of all.
      tokens: so many.
      separators: whether they stand between documents.
      whole: the last document is left out, or the only one kept, and not cut.
    """
    between = int(separators)
    ends = np.cumsum(lengths + between) - between
    kept = int(np.searchsorted(ends, tokens))
    if whole:
        return lengths[: max(1, int(np.searchsorted(ends, tokens, side="right")))]
    if kept == len(lengths):
        return lengths
    begin = int(ends[kept] - lengths[kept])
    return np.append(lengths[:kept], max(0, tokens - begin))


def check_rows(rows: DocumentRows, window: int) -> None:
    """Raises a UserError where no document has anything to predict."""
    if not rows.filled:
        raise UserError(
            f"the training text has no document with a token to predict that counts, for rows of "
            f"{window}: give more text"
        )
