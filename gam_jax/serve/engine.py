"""The thread that serves: requests come in from any thread, and are done in turns by one."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from gam_jax.serve.drafts import Draft
from gam_jax.serve.executor import Executor
from gam_jax.serve.request import Closed, Counts, Full, Request
from gam_jax.serve.seating import Settings
from gam_jax.serve.service import Service
from gam_jax.serve.text import Text
from sharding.errors import UserError

NEWEST = 0.1
"""The part of the average time of a request that the newest is."""


class Engine:
    """Requests on an executor, see `request.Engine`.

    Args:
      executor: its programs compiled.
      settings: how its rows are shared out.
      draft: guesses what texts go on with; None for no guesses.
      clock: seconds, from any start.

    Raises:
      UserError: settings that cannot be kept.
    """

    def __init__(
        self,
        executor: Executor,
        settings: Settings = Settings(),
        draft: Draft | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = Service(executor, settings, draft, clock)
        self._sizes, self._settings, self._clock = executor.sizes, settings, clock
        self._changed = threading.Condition()
        self._inbox: list[Text] = []
        self._cancelled: set[int] = set()
        self._numbers, self._failure = 0, ""
        self._deadline: float | None = None
        self._thread: threading.Thread | None = None
        self._ended, self._seconds, self._since = 0, 1.0, clock()
        self._counts = self._service.counts()

    def submit(self, request: Request) -> int:
        """See `request.Engine`."""
        self._check(request)
        with self._changed:
            if self._failure or self._deadline is not None:
                raise Closed(self._failure or "the engine is being stopped")
            counts = self._counts
            waiting = counts.queued + len(self._inbox)
            if waiting >= self._settings.queue + self._sizes.rows - counts.rows:
                raise Full(max(self._seconds * (waiting + 1), 1.0))
            self._numbers += 1
            self._inbox.append(Text(self._numbers, request))
            self._changed.notify()
            return self._numbers

    def cancel(self, number: int) -> None:
        """See `request.Engine`."""
        with self._changed:
            self._cancelled.add(number)
            self._changed.notify()

    def counts(self) -> Counts:
        """See `request.Engine`."""
        with self._changed:
            waiting = self._counts.queued + len(self._inbox)
            return dataclasses.replace(self._counts, queued=waiting)

    def failure(self) -> str:
        """See `request.Engine`."""
        return self._failure

    def start(self) -> None:
        """See `request.Engine`."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """See `request.Engine`."""
        with self._changed:
            self._deadline = self._clock() + seconds
            self._changed.notify()
        if self._thread is None:
            self.start()
        assert self._thread is not None
        self._thread.join()

    def _check(self, request: Request) -> None:
        sizes, size = self._sizes, len(request.prompt)
        if not size:
            raise UserError("a prompt needs at least one token")
        wrong = next((token for token in request.prompt if not 0 <= token < sizes.vocab), None)
        if wrong is not None:
            raise UserError(f"prompt: {wrong} is no id of the vocabulary of {sizes.vocab}")
        in_pages = min(sizes.row_pages, sizes.pages - 1) * sizes.page
        limits = [limit for limit in (in_pages, sizes.limit) if limit]
        if limits and size + request.max_tokens > min(limits):
            raise UserError(
                f"a prompt of {size} tokens with up to {request.max_tokens} more is "
                f"{size + request.max_tokens} tokens, and {min(limits)} are the most"
            )

    def _run(self) -> None:
        try:
            while self._take_in():
                self._service.turn()
                self._take_stock()
            self._service.seats.carries.close()
            self._take_stock()
        except Exception as error:
            with self._changed:
                self._failure = f"{type(error).__name__}: {error}"
                self._put_in_queue()
                self._service.fail(self._failure)
                self._counts = self._service.counts()

    def _take_in(self) -> bool:
        """Waits for something to do, and takes in what was asked; False when all is done."""
        while True:
            with self._changed:
                self._put_in_queue()
                if self._deadline is not None and self._clock() >= self._deadline:
                    self._cancelled |= {text.number for text in self._service.all()}
                self._service.cancel(self._cancelled)
                self._cancelled = set()
                self._counts = self._service.counts()
                if self._service.busy:
                    return True
                if self._deadline is not None:
                    return False
            if not self._service.seats.carries.settle():
                with self._changed:
                    if not (self._inbox or self._cancelled or self._deadline is not None):
                        self._changed.wait()

    def _put_in_queue(self) -> None:
        for text in self._inbox:
            self._service.queue.push(text.request.user, text)
        self._inbox.clear()

    def _take_stock(self) -> None:
        """Counts, and the seconds from the end of one request to that of the next."""
        with self._changed:
            self._counts = self._service.counts()
        ended, now = sum(count for _, count in self._counts.requests), self._clock()
        if ended > self._ended:
            each = (now - self._since) / (ended - self._ended)
            self._seconds += (each - self._seconds) * NEWEST
            self._ended, self._since = ended, now
