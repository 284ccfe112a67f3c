"""Drafts: what a text may go on with. A wrong guess changes no text, it costs time alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from gam_jax.serve.executor import (
    LAST_DRAWN,
    UNSURE,
    Blocks,
    Draws,
    Executor,
    Pending,
    Saved,
    Sizes,
    Work,
)
from gam_jax.serve.pages import Pages, pages_of
from gam_jax.serve.scheduler import block_of
from sharding.errors import UserError

LONGEST = 4
"""Tokens by which an n-gram draft looks for a text's end in the text before."""


class Draft:
    """Guesses tokens for the rows of an engine, by its thread.

    Attributes:
      free: whether a guess costs next to nothing.
      filler: what fills up a row's block after its guesses.
    """

    free = False
    filler = 0

    def seat(self, row: int, key: int, draws: Draws, prompt: Sequence[int]) -> None:
        """A text gets a row; arguments as of `Executor.seat`."""

    def leave(self, row: int) -> None:
        """A text leaves its row."""

    def guess(self, asked: Mapping[int, tuple[Sequence[int], int]]) -> dict[int, list[int]]:
        """Guesses for some rows.

        Args:
          asked: of each row, its tokens so far and how many to guess at most.

        Returns:
          Guesses for each row, perhaps none.
        """
        raise NotImplementedError

    def hear(self, row: int, tokens: Sequence[int], beyond: Sequence[int]) -> None:
        """What a step with guesses has drawn.

        Args:
          row: whose.
          tokens: its tokens, with the new ones.
          beyond: drawn at each place that was filled up; none if a guess fell.
        """

    def sleep(self) -> None:
        """The model leaves the device; no row is seated."""

    def wake(self) -> None:
        """The inverse."""


class Lookup:
    """Finds what followed the last place where a text's last tokens stood before.

    Prompt lookup (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding): the longest end of
    the text that stands in it before is looked for, and its latest place counts. A text that
    repeats itself up to its end goes on so.

    Args:
      longest: tokens of the end that is looked for, at most.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        self._longest, self._seen = longest, 0
        self._places: dict[tuple[int, ...], int] = {}

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Guesses, at most so many; each call is with the tokens of the one before, and more."""
        for place in range(max(self._seen, 1), len(tokens)):
            for size in range(1, min(self._longest, place) + 1):
                self._places[tuple(tokens[place - size : place])] = place
        self._seen = max(self._seen, len(tokens))
        for size in range(min(self._longest, len(tokens) - 1), 0, -1):
            place = self._places.get(tuple(tokens[-size:]), len(tokens))
            if place < len(tokens):
                found = list(tokens[place : place + most])
                return [found[i % len(found)] for i in range(most)] if found else []
        return []


class NgramDraft(Draft):
    """Guesses what stood in the same text before, see `Lookup`."""

    free = True

    def __init__(self) -> None:
        self._lookups: dict[int, Lookup] = {}

    def seat(self, row: int, key: int, draws: Draws, prompt: Sequence[int]) -> None:
        """See `Draft`."""
        self._lookups[row] = Lookup()

    def leave(self, row: int) -> None:
        """See `Draft`."""
        del self._lookups[row]

    def guess(self, asked: Mapping[int, tuple[Sequence[int], int]]) -> dict[int, list[int]]:
        """See `Draft`."""
        return {row: self._lookups[row].guess(*wanted) for row, wanted in asked.items()}


class RunDraft(Draft):
    """Guesses by another model, which draws with the same keys as the one it guesses for.

    Its rows are those of the engine. Before it guesses, a row's state is kept, and put back if a
    guess was wrong.

    Args:
      executor: of that model, compiled; with pages for all rows, each of the most tokens.
      of: the sizes of the one it guesses for.

    Raises:
      UserError: it has another number of rows, or another vocabulary.
    """

    def __init__(self, executor: Executor, of: Sizes) -> None:
        self._executor, sizes = executor, executor.sizes
        for name in ("rows", "vocab"):
            own, other = getattr(sizes, name), getattr(of, name)
            if own != other:
                raise UserError(f"draft: its {name} are {own}, and those of the model {other}")
        self._pages = Pages(sizes.pages if sizes.page else 1)
        self._own: dict[int, list[int]] = {}
        self._read: dict[int, list[int]] = {}
        self._kept: dict[int, tuple[Saved, int]] = {}
        self._texts: dict[int, tuple[int, Draws, np.ndarray]] = {}

    def seat(self, row: int, key: int, draws: Draws, prompt: Sequence[int]) -> None:
        """See `Draft`."""
        self._texts[row] = key, draws, np.asarray(prompt, np.int32)
        self._executor.seat(row, *self._texts[row])
        self._executor.load(row, None)
        self._own[row], self._read[row] = [], []

    def leave(self, row: int) -> None:
        """See `Draft`."""
        self._pages.release(self._own.pop(row, []))
        self._read.pop(row, None)
        self._kept.pop(row, None)
        self._texts.pop(row, None)

    def guess(self, asked: Mapping[int, tuple[Sequence[int], int]]) -> dict[int, list[int]]:
        """See `Draft`; a row that has no place for its guesses gets none."""
        sizes = self._executor.sizes
        most = {
            row: min(most, sizes.limit - len(tokens)) if sizes.limit else most
            for row, (tokens, most) in asked.items()
        }
        rows = [row for row in asked if most[row] > 0 and self._room(row, asked[row][0], most[row])]
        for row in rows:
            self._catch_up(row, asked[row][0])
        flights: list[tuple[Pending, list[int]]] = []
        for place in range(max((most[row] for row in rows), default=0)):
            now = [row for row in rows if place < most[row]]
            first = {row: asked[row][0][-1] if not place else LAST_DRAWN for row in now}
            flights.append((self._executor.step(self._work(first)), now))
        found: dict[int, list[int]] = {row: [] for row in asked}
        for pending, now in flights:
            drawn = pending.result()
            for row in now:
                found[row].append(int(drawn.tokens[row, 0]))
        for row in rows:  # the last guess was drawn, and not read
            self._read[row] = [*asked[row][0], *found[row][:-1]]
        return found

    def sleep(self) -> None:
        """See `Draft`."""
        self._executor.sleep()

    def wake(self) -> None:
        """See `Draft`."""
        self._executor.wake()

    def _room(self, row: int, tokens: Sequence[int], most: int) -> bool:
        page = self._executor.sizes.page
        need = pages_of(len(tokens) + most, page) - len(self._own[row])
        if need > self._pages.free:
            return False
        self._own[row] += [self._pages.take() for _ in range(need)]
        return True

    def _catch_up(self, row: int, tokens: Sequence[int]) -> None:
        """Reads all but the last token, from the state before the guesses if one was wrong."""
        before = len(tokens) - 1
        read = self._read[row]
        if read != list(tokens[: len(read)]) or len(read) > before:
            saved, count = self._kept[row]
            self._executor.load(row, saved)
            prompt = self._texts[row][-1]  # wrong guesses were counted as written
            written = np.asarray(tokens[len(prompt) :], np.int32)
            self._executor.seat(row, *self._texts[row], written)
            del read[count:]
        while len(read) < before:
            width = block_of(len(tokens) - len(read), self._executor.sizes.widths)
            block = np.asarray(tokens[len(read) : len(read) + width], np.int32)
            own = np.asarray([row], np.int32)
            self._executor.read(Blocks(own, block[None], self._table(row)[None]))
            read += block.tolist()
        self._kept[row] = self._executor.save(row), before

    def _table(self, row: int) -> np.ndarray:
        table = np.zeros(self._executor.sizes.row_pages, np.int32)
        table[: len(self._own[row])] = self._own[row]
        return table

    def _work(self, first: Mapping[int, int]) -> Work:
        sizes = self._executor.sizes
        tokens, known = np.zeros((sizes.rows, 1), np.int32), np.zeros(sizes.rows, np.int32)
        pages = np.zeros((sizes.rows, sizes.row_pages), np.int32)
        for row, token in first.items():
            tokens[row], known[row], pages[row] = token, 1, self._table(row)
        return Work(tokens, known, np.zeros(sizes.rows, np.int32), pages)


class UnitsDraft(Draft):
    """Guesses by the model itself, which was trained to look ahead, see `models.units`.

    Placeholders fill up each row's block. What is drawn there, after guesses that all stand, are
    the next step's guesses, so that they cost no pass of their own.

    Args:
      placeholder: its id.
      unit: k, the most tokens that the model tells at once: one, and k - 1 at placeholders.
    """

    def __init__(self, placeholder: int, unit: int) -> None:
        self.filler, self._ahead = placeholder, unit - 1
        self._next: dict[int, tuple[int, list[int]]] = {}

    def leave(self, row: int) -> None:
        """See `Draft`."""
        self._next.pop(row, None)

    def guess(self, asked: Mapping[int, tuple[Sequence[int], int]]) -> dict[int, list[int]]:
        """See `Draft`."""
        found = {}
        for row, (tokens, most) in asked.items():
            heard, guesses = self._next.get(row, (0, []))
            found[row] = guesses[:most] if heard == len(tokens) else []
        return found

    def hear(self, row: int, tokens: Sequence[int], beyond: Sequence[int]) -> None:
        """See `Draft`."""
        guesses = list(itertools.takewhile(lambda token: token != UNSURE, beyond[: self._ahead]))
        self._next[row] = len(tokens), guesses


class SemiDraft(Draft):
    """Guesses by a small network from what the model has found, see `models.semi`.

    Args:
      executor: of the model, with the drafter.
      window: slots that the drafter sees.
    """

    def __init__(self, executor: Executor, window: int) -> None:
        self._executor, self._window = executor, window

    def guess(self, asked: Mapping[int, tuple[Sequence[int], int]]) -> dict[int, list[int]]:
        """See `Draft`."""
        if not asked:
            return {}
        work = np.zeros((self._executor.sizes.rows, self._window + 1), np.int32)
        for row, (tokens, _) in asked.items():
            last = tokens[-self._window :]
            work[row, self._window - len(last) : self._window] = last
            work[row, self._window] = len(tokens)
        found = self._executor.guess(work)
        return {row: found[row, :most].tolist() for row, (_, most) in asked.items()}
