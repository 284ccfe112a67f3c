"""Answers on their way from the engine's thread to the one that talks to clients."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

from experiments.serve.metrics import Times
from experiments.serve.refusal import Refused
from gam_jax.serve.request import Closed, End, Engine, Full, Request, Token
from sharding.errors import UserError

Event = tuple[int, Token | End]
"""Which answer, and what has become of it."""


class Live:
    """The answers to one body.

    Events wait here for a client that reads slowly, and the engine for none: there are no more of
    them than tokens were asked for.

    Args:
      engine: that is asked.
      times: where the times of tokens are counted.
    """

    def __init__(self, engine: Engine, times: Times) -> None:
        self._engine, self._times = engine, times
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._running: dict[int, int] = {}
        self._last: dict[int, float] = {}

    def tell(self, number: int, event: Token | End) -> None:
        """Takes an event from the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

    def submit(self, requests: Sequence[Request]) -> None:
        """Puts all of them in the queue, or none.

        Raises:
          Refused: no room in it, a prompt that cannot be served, or an engine that has ended.
        """
        self._asked = time.perf_counter()
        try:
            for number, request in enumerate(requests):
                self._running[number] = self._engine.submit(request)
        except Full as error:
            self.cancel()
            raise Refused(429, str(error), code="queue_full", retry=error.seconds) from error
        except Closed as error:
            self.cancel()
            if why := self._engine.failure():
                raise Refused(500, f"the engine failed: {why}", code="engine_failed") from error
            raise Refused(503, str(error), code="draining") from error
        except UserError as error:
            self.cancel()
            raise Refused(400, str(error), code="context_length_exceeded") from error

    def cancel(self) -> None:
        """Ends what has not ended."""
        for number in self._running.values():
            self._engine.cancel(number)
        self._running.clear()

    def fail(self, why: str) -> None:
        """Ends them all with an error, though the engine does not say so."""
        for number in self._running:
            self.tell(number, End("error", "", 0, 0, 0, why))

    async def events(self) -> AsyncIterator[Event]:
        """What becomes of the answers, until all have ended.

        Raises:
          Refused: an answer or the whole engine failed, or the server was told to end.
        """
        while self._running:
            number, event = await self._events.get()
            if isinstance(event, End):
                self._running.pop(number, None)
                if event.reason == "error":
                    self.cancel()
                    raise Refused(500, f"the answer failed: {event.error}", code="answer_failed")
                if event.reason == "cancelled":
                    self.cancel()
                    raise Refused(503, "the server ended before the answer did", code="draining")
            else:
                self._time(number)
            yield number, event

    def _time(self, number: int) -> None:
        now, last = time.perf_counter(), self._last.get(number)
        self._last[number] = now
        if last is None:
            self._times.first.observe(now - self._asked)
        else:
            self._times.between.observe(now - last)
