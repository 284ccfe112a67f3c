"""Who sits in which row, with which pages, and what is remembered when he leaves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from gam_jax.serve.carries import Carries
from gam_jax.serve.drafts import Draft
from gam_jax.serve.executor import Executor, Saved
from gam_jax.serve.pages import Pages, pages_of
from gam_jax.serve.scheduler import Turns
from gam_jax.serve.text import Parked, Text
from sharding.bounds import Count, Size, check_bounds

WORTH = 16
"""Tokens that a snapshot must save over the one before it."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an engine shares out its rows.

    Attributes:
      prefill_budget: tokens of prompts that are read in one turn, at most.
      queue: requests that may wait for a row.
      snapshots: bytes of remembered states in memory, and of those in the folder; 0 for none.
      folder: where remembered states outlive the process; empty for nowhere.
      exact: whether what is remembered must not change a single bit: states are then remembered
        only where a prompt that is read from its start has a border of blocks too.

    Raises:
      UserError: a number outside its bounds.
    """

    prefill_budget: Size = 512
    queue: Count = 1024
    snapshots: Count = 2**28
    folder: str = ""
    exact: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)


class Seating:
    """The rows of an executor, and the pages that their texts share.

    Args:
      executor: whose rows they are.
      settings: how they are shared out.
      draft: is told who sits where.

    Attributes:
      texts: of each row; None where it is free.
      parked: texts that had to leave their row.
      pool: pages of all rows.
      carries: what is remembered.
      cached: tokens of prompts that were remembered.
    """

    def __init__(self, executor: Executor, settings: Settings, draft: Draft | None) -> None:
        self._executor, self._settings, self._draft = executor, settings, draft
        self._sizes = sizes = executor.sizes
        self.pool = Pages(sizes.pages if sizes.page else 1)
        folder = Path(settings.folder) if settings.folder else None
        kind = "exact" if settings.exact else ""
        live = 2 * sizes.rows
        self.carries = Carries(executor, self.pool, settings.snapshots, folder, live, kind)
        self.texts: list[Text | None] = [None] * sizes.rows
        self.parked: list[Text] = []
        self._seated, self.cached = 0, 0

    @property
    def running(self) -> list[Text]:
        """Texts that have a row, in the order in which they got their first."""
        return sorted((text for text in self.texts if text), key=lambda text: text.seated)

    def give(self, queue: Turns[Text]) -> list[Text]:
        """Gives free rows to texts, those that had to leave theirs first; returns those texts."""
        given = []
        for row, text in enumerate(self.texts):
            if text is not None:
                continue
            text = self._next(queue)
            if text is None:
                break
            self.texts[row], text.row = text, row
            self._seat(text, row)
            given.append(text)
        return given

    def _next(self, queue: Turns[Text]) -> Text | None:
        """Takes out the text whose turn it is, if it has the pages it needs now."""
        if self.parked:
            text = min(self.parked, key=lambda text: text.seated)
            if not self._fits(text):
                return None
            self.parked.remove(text)
            return text
        return queue.pop() if queue and self._fits(next(iter(queue))) else None

    def _fits(self, text: Text) -> bool:
        """Whether there are pages for all that it has, and a token."""
        need = pages_of(len(text.tokens) + 1, self._sizes.page) - self.pool.free
        return need <= 0 or need <= self.carries.lone_pages or not any(self.texts)

    def _seat(self, text: Text, row: int) -> None:
        request = text.request
        prompt = np.asarray(request.prompt, np.int32)
        written = np.asarray(text.tokens[len(prompt) :], np.int32)
        if text.parked is not None:
            while self.pool.free < text.parked.pages and self.carries.give_up_pages():
                pass
            text.pages = [self.pool.take() for _ in range(text.parked.pages)]
            saved = self._executor.from_bytes(text.parked.data, tuple(text.pages))
            text.parked = None
        else:
            self._seated += 1
            text.seated = self._seated
            text.leader = self._leader(text)
            saved = self._remembered(text)
        self._executor.seat(row, request.seed, request.draws, prompt, written)
        self._executor.load(row, saved)
        if self._draft is not None:
            self._draft.seat(row, request.seed, request.draws, request.prompt)

    def _leader(self, text: Text) -> Text | None:
        """Who reads the same prompt, so that it need not be read twice."""
        prompt, scored = text.request.prompt, text.request.scores_prompt
        if not self._settings.snapshots or scored or len(prompt) <= WORTH:
            return None
        same = (other for other in self.running if other.request.prompt == prompt)
        return next((o for o in same if o is not text and not o.begun and not o.leader), None)

    def follow(self, text: Text) -> bool:
        """Whether a text need not wait (any more) for its leader, whose state it then takes."""
        if text.leader is None:
            return True
        if text.leader.row is not None and not text.leader.begun:
            return False
        text.leader = None
        if text.row is not None and text.read == text.cached:
            self.cached -= text.cached
            self.pool.release(text.pages)
            self._executor.load(text.row, self._remembered(text))
        return True

    def _remembered(self, text: Text) -> Saved | None:
        """Takes the pages of the longest remembered beginning, and returns its state."""
        prompt = text.request.prompt[:-1]
        saved = None
        if not text.request.scores_prompt:
            text.read, saved, pages = self.carries.find(prompt)
            text.cached = text.kept = text.read
            text.pages = list(pages)
            self.cached += text.cached
        width = self._sizes.widths[0]
        places = {len(prompt), self.carries.parts(prompt)}
        if self._settings.exact:
            places = {place // width * width for place in places}
        text.borders = frozenset(place for place in places if place - text.read >= WORTH)
        return saved

    def park(self, text: Text) -> None:
        """Takes a text out of its row, with its state and the content of its pages."""
        assert text.row is not None
        pages = text.pages[: pages_of(text.read, self._sizes.page)]
        data = self._executor.bytes_of(self._executor.save(text.row), tuple(pages))
        text.parked = Parked(data, len(pages))
        self.parked.append(text)
        self.leave(text)

    def leave(self, text: Text) -> None:
        """Frees a text's row and pages, if it has any."""
        if text.row is not None:
            if self._draft is not None:
                self._draft.leave(text.row)
            self.texts[text.row], text.row = None, None
        self.pool.release(text.pages)
        text.pages = []

    def remember(self, text: Text) -> None:
        """Remembers the state of a text, as far as it has been told to read."""
        if text.row is not None and text.read - text.kept >= WORTH:
            text.kept = text.read
            pages = text.pages[: pages_of(text.read, self._sizes.page)]
            self.carries.put(text.tokens[: text.read], text.row, pages)

    def space(self, text: Text, end: int) -> bool:
        """Sees to pages for a text's tokens up to `end`, of its own where it will write.

        Snapshots give up theirs first, then the youngest text its row.

        Returns:
          False if that was the text itself.
        """
        page = self._sizes.page
        if not page:
            return True
        need, shared = self.pool.wanted(text.pages, text.read, end, page)
        while need > self.pool.free:
            if not self.carries.give_up_pages():
                youngest = self.running[-1]
                self.park(youngest)
                if youngest is text:
                    return False
            need, shared = self.pool.wanted(text.pages, text.read, end, page)
        if shared:
            place, own = text.read // page, self.pool.take()
            self._executor.copy_page(text.pages[place], own)
            self.pool.release([text.pages[place]])
            text.pages[place] = own
        text.pages += [self.pool.take() for _ in range(need - shared)]
        return True
