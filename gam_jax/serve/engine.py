"""The thread that serves: requests come in from any thread, and are done in turns by one."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from gam_jax.serve.drafts import Draft
from gam_jax.serve.executor import Executor
from gam_jax.serve.request import Closed, Counts, Full, Request
from gam_jax.serve.residents import IN, Residents
from gam_jax.serve.seating import Settings
from gam_jax.serve.service import Service
from gam_jax.serve.text import Text, described
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
      residents: who else has models on the devices; None if this one may stay there.
      name: of the model among them.

    Raises:
      UserError: settings that cannot be kept.
    """

    def __init__(
        self,
        executor: Executor,
        settings: Settings = Settings(),
        draft: Draft | None = None,
        clock: Callable[[], float] = time.monotonic,
        residents: Residents | None = None,
        name: str = "",
    ) -> None:
        self._service = Service(executor, settings, draft, clock)
        self._sizes, self._settings, self._clock = executor.sizes, settings, clock
        self._residents, self._name = residents, name
        self._changed = residents.changed if residents else threading.Condition()
        self._inbox: list[Text] = []
        self._later: list[Text] = []  # until the model is on the device, and open
        self._hits, self._misses, self._loading = 0, 0, 0.0
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
            waiting = counts.queued + len(self._inbox) + len(self._later)
            if waiting >= self._settings.queue + self._sizes.rows - counts.rows:
                raise Full(max(self._seconds * (waiting + 1), 1.0))
            self._numbers += 1
            enters = self._residents is None or self._residents.ask(self._name)
            self._hits += enters
            (self._inbox if enters else self._later).append(Text(self._numbers, request))
            self._changed.notify_all()
            return self._numbers

    def cancel(self, number: int) -> None:
        """See `request.Engine`."""
        with self._changed:
            self._cancelled.add(number)
            self._changed.notify_all()

    def counts(self) -> Counts:
        """See `request.Engine`."""
        with self._changed:
            waiting = self._counts.queued + len(self._inbox) + len(self._later)
            return dataclasses.replace(
                self._counts,
                queued=waiting,
                loaded=self._residents is None or self._residents.loaded(self._name),
                hits=self._hits,
                misses=self._misses,
                loading_seconds=self._loading,
            )

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
            self._changed.notify_all()
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
                self._failure = described(error)
                self._take_later()
                self._put_in_queue()
                self._service.fail(self._failure)
                self._counts = self._service.counts()
        finally:
            if self._residents is not None:
                with self._changed:
                    self._residents.left(self._name)

    def _take_in(self) -> bool:
        """Waits for something to do, and takes in what was asked; False when all is done."""
        while True:
            with self._changed:
                self._put_in_queue()
                self._cancel()
                self._counts = self._service.counts()
                if self._service.busy:
                    return True
                if self._deadline is not None and not self._later:
                    return False
                move = self._rest()
            if move:
                self._move(move)
            elif not self._service.seats.carries.settle():
                with self._changed:
                    if self._idle():
                        self._changed.wait(self._left())

    def _put_in_queue(self) -> None:
        if self._later and self._residents is not None and self._residents.open(self._name):
            self._hits += len(self._later)
            self._take_later()
        for text in self._inbox:
            self._service.queue.push(text.request.user, text)
        self._inbox.clear()

    def _take_later(self) -> None:
        self._inbox += self._later
        self._later.clear()

    def _cancel(self) -> None:
        if self._deadline is not None and self._clock() >= self._deadline:
            self._cancelled |= {text.number for text in [*self._service.all(), *self._later]}
        gone = [text for text in self._later if text.number in self._cancelled]
        self._later = [text for text in self._later if text not in gone]
        self._service.cancel(self._cancelled, gone)
        self._cancelled = set()

    # Among other models.

    def _rest(self) -> str:
        """Lets others have the model's place, and says where the model has to be moved."""
        if self._residents is None:
            return ""
        self._residents.rest(self._name, bool(self._later))
        return self._residents.move(self._name)

    def _idle(self) -> bool:
        """Whether nothing has come meanwhile that has to be done."""
        here, name = self._residents, self._name
        called = here is not None and (here.move(name) or (self._later and here.open(name)))
        ends = self._deadline is not None and not self._later
        return not (self._inbox or self._cancelled or called or ends)

    def _left(self) -> float | None:
        """Seconds until texts that wait for the model are cut."""
        return None if self._deadline is None else max(self._deadline - self._clock(), 0)

    def _move(self, where: str) -> None:
        """Moves the model to the device, or away; what has waited for it is taken in."""
        assert self._residents is not None
        begun = self._clock()
        if where != IN:
            self._service.sleep()
            with self._changed:
                self._residents.gone(self._name)
            return
        self._service.wake()
        with self._changed:
            self._residents.came(self._name)
            self._misses, self._loading = self._misses + 1, self._loading + self._clock() - begun
            self._hits += max(len(self._later) - 1, 0)
            self._take_later()

    def _take_stock(self) -> None:
        """Counts, and the seconds from the end of one request to that of the next."""
        with self._changed:
            self._counts = self._service.counts()
        ended, now = sum(count for _, count in self._counts.requests), self._clock()
        if ended > self._ended:
            each = (now - self._since) / (ended - self._ended)
            self._seconds += (each - self._seconds) * NEWEST
            self._ended, self._since = ended, now
