"""What rows write, as text on the host: decoded as it comes, up to an end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from gam_jax.data.tokenizer import Stream
from gam_jax.decode import ENDED
from sharding.errors import UserError

OPEN, BY_ID, BY_TEXT = "", "id", "text"
"""How a text has ended: not at all, with a stop id, or before a stop text."""


class Until:
    """Lets a text through up to the first of some stop texts, and never a part of that.

    What may be the beginning of a stop text is held back until it is known. Where several are met,
    the one that is whole first counts, of those the longest, so that what is let through does not
    depend on the pieces in which the text comes.

    Args:
      stops: texts, none of them empty.

    Raises:
      UserError: an empty one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise UserError("a stop text needs at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self.met = False

    def push(self, text: str) -> str:
        """What of the text so far can be let through by now, and was not before."""
        if self.met:
            return ""
        held = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        self.met = bool(found)
        sure = min(found)[1] if found else len(held) - self._doubtful(held)
        self._held = held[sure:]
        return held[:sure]

    def flush(self) -> str:
        """What is held back, where the text ends without a stop."""
        held, self._held = self._held, ""
        return "" if self.met else held

    def _doubtful(self, held: str) -> int:
        """The length of the longest end of `held` with which a stop text begins."""
        longest = max(map(len, self._stops), default=0)
        sizes = range(min(len(held), longest - 1), 0, -1)
        return next((n for n in sizes if any(s.startswith(held[-n:]) for s in self._stops)), 0)


class Continuation:
    """What one row has written.

    Args:
      stream: decodes its ids.
      stops: texts before which it ends.
      ends: ids with which it ends; they are no part of the text.

    Attributes:
      ends: the ids with which it ends.
      text: so far.
      tokens: that were read from the model, the one that ended it included.
      ended: `OPEN`, `BY_ID` or `BY_TEXT`.
    """

    def __init__(
        self, stream: Stream, stops: Sequence[str] = (), ends: Collection[int] = ()
    ) -> None:
        self._stream, self._until, self.ends = stream, Until(stops), frozenset(ends)
        self.text, self.tokens, self.ended = "", 0, OPEN

    def push(self, ids: Iterable[int]) -> str:
        """Takes ids, and returns what the text grows by; what comes after its end is not taken."""
        return self._grown(self._pushed(ids))

    def _pushed(self, ids: Iterable[int]) -> Iterator[str]:
        for token in ids:
            if self.ended or token == ENDED:
                return
            self.tokens += 1
            if int(token) in self.ends:
                self.ended = BY_ID
                yield self._rest()
                return
            yield self._until.push(self._stream.push(int(token)))
            if self._until.met:
                self.ended = BY_TEXT

    def flush(self) -> str:
        """What was held back, where nothing more comes."""
        return "" if self.ended else self._grown([self._rest()])

    def _rest(self) -> str:
        text = self._until.push(self._stream.flush())
        if self._until.met:
            self.ended = BY_TEXT
        return text + self._until.flush()

    def _grown(self, parts: Iterable[str]) -> str:
        new = "".join(parts)
        self.text += new
        return new


def follow(pieces: Iterable[np.ndarray], rows: Sequence[Continuation]) -> Iterator[tuple[int, str]]:
    """Gives pieces of `decode.generate` to the rows, until all have ended.

    Args:
      pieces: ids [B, N], of B rows or more; those beyond `rows` are left.
      rows: that take them.

    Yields:
      The number of a row, and what its text grows by; last, what was held back.
    """
    for piece in pieces:
        for number, row in enumerate(rows):
            yield number, row.push(piece[number])
        if all(row.ended for row in rows):
            break
    for number, row in enumerate(rows):
        yield number, row.flush()
