"""Texts on rows: what is read, stepped and told in one turn.  Knows no threads."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gam_jax.serve.drafts import Draft
from gam_jax.serve.executor import Blocks, Drawn, Executor, Pending, Work
from gam_jax.serve.pace import Pace
from gam_jax.serve.request import Counts
from gam_jax.serve.scheduler import Turns, deal, gathered
from gam_jax.serve.seating import Seating, Settings
from gam_jax.serve.text import Text, described
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Seat:
    """A row's part in a step, or in a read that is scored.

    Attributes:
      text: whose it is.
      row: its place among those of the step or read.
      known: tokens of the block that are known.
      guesses: that follow them.
    """

    text: Text
    row: int
    known: int
    guesses: int = 0


@dataclasses.dataclass(frozen=True)
class Flight:
    """What the device was told to do, and the host has not seen.

    Attributes:
      pending: its result.
      seats: of a step, or of blocks of prompts that are scored.
      width: tokens of each row.
      starts: where each scored block begins; None for a step.
    """

    pending: Pending
    seats: tuple[Seat, ...]
    width: int
    starts: tuple[int, ...] | None = None


class Service:
    """Texts on the rows of an executor.

    Args:
      executor: its programs compiled.
      settings: how rows are shared out.
      draft: guesses what texts go on with; None for no guesses.
      clock: seconds, from any start.

    Attributes:
      queue: texts that wait for their first row.
      seats: who sits where.

    Raises:
      UserError: a budget in which the widest block of a prompt has no place.
    """

    def __init__(
        self,
        executor: Executor,
        settings: Settings,
        draft: Draft | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor, self._settings, self._clock = executor, settings, clock
        self._sizes = sizes = executor.sizes
        if settings.prefill_budget < sizes.widths[0]:
            raise UserError(
                f"prefill_budget={settings.prefill_budget}: a prompt is read in blocks of up to "
                f"{sizes.widths[0]} tokens; give at least as many"
            )
        self._draft = draft if sizes.block > 1 else None
        self._pace = Pace(sizes.block, draft.free) if self._draft and draft else Pace(1)
        self.queue: Turns[Text] = Turns()
        self.seats = Seating(executor, settings, self._draft)
        self._flights: collections.deque[Flight] = collections.deque()
        self._served = 0
        self._done: collections.Counter[str] = collections.Counter()
        self._ends: collections.Counter[str] = collections.Counter()
        self._last: tuple[int, float] | None = None

    @property
    def busy(self) -> bool:
        """Whether a text is in progress or waits, or the device has not been heard."""
        return bool(self.queue or self.seats.parked or self._flights or any(self.seats.texts))

    def counts(self) -> Counts:
        """What was done, and is in hand."""
        names = ("read", "written", "wasted", "guessed", "accepted", "fell", "passes")
        names += ("guessed_passes", "guessed_written")
        done: dict[str, Any] = {name: self._done[name] for name in names}
        return Counts(
            block=self._sizes.block,
            queued=len(self.queue) + len(self.seats.parked),
            rows=len(self.seats.running),
            pages=self.seats.pool.used,
            cached=self.seats.cached,
            requests=tuple(sorted(self._ends.items())),
            **done,
        )

    def all(self) -> list[Text]:
        """Texts that have not ended."""
        return [*self.queue, *self.seats.parked, *self.seats.running]

    def cancel(self, numbers: set[int], others: Sequence[Text] = ()) -> None:
        """Ends texts, and frees their rows and pages.

        Args:
          numbers: of texts; those of texts that have ended are of none.
          others: texts that are not in the queue.
        """
        for text in [*others, *self.queue.remove(lambda text: text.number in numbers)]:
            self._end(text, "cancelled")
        for text in [*self.seats.parked, *self.seats.running]:
            if text.number in numbers:
                self._end(text, "cancelled")

    def fail(self, error: str) -> None:
        """Ends all texts with an error; the executor is not called again."""
        for text in self.all():
            with contextlib.suppress(Exception):
                text.finish("error", error)
            self._ends["error"] += 1
        self.queue, self.seats = Turns(), Seating(self._executor, Settings(snapshots=0), None)
        self._flights.clear()

    def sleep(self) -> None:
        """Moves all to the host's memory while no text is in progress, see `Executor.sleep`."""
        self.seats.carries.leave_device()
        if self._draft is not None:
            self._draft.sleep()
        self._executor.sleep()

    def wake(self) -> None:
        """The inverse."""
        self._executor.wake()
        if self._draft is not None:
            self._draft.wake()

    def turn(self) -> None:
        """Gives free rows to texts, reads blocks of prompts, begins a step, tells the last one."""
        guesses = self._pace.pays()
        if guesses or any(flight.width > 1 for flight in self._flights):
            self._hear(0)  # what a guess follows must be seen
        for text in self.seats.give(self.queue):
            if text.request.scores_prompt and not text.opened:
                with self._guard(text):
                    text.tell_first()
        self._read_prompts(guesses)
        begun = self._begin(guesses)
        self._hear(1 if begun else 0)
        if not begun:
            self._last = None

    def _end(self, text: Text, reason: str, error: str = "") -> None:
        with contextlib.suppress(Exception):  # what it tells may be what has failed
            text.finish(reason, error)
        self._ended(text)

    def _ended(self, text: Text) -> None:
        if text.end is None or text.gone:
            return
        text.gone = True
        self._ends[text.end.reason] += 1
        self._pace.left(text.number)
        if text.end.reason in ("stop", "length") and not self._settings.exact:
            self.seats.remember(text)
        if text in self.seats.parked:
            self.seats.parked.remove(text)
        self.seats.leave(text)

    @contextlib.contextmanager
    def _guard(self, text: Text) -> Iterator[None]:
        """Ends a text one of whose own functions raises: the others go on."""
        try:
            yield
        except Exception as error:
            self._end(text, "error", described(error))

    # Reading.

    def _read_prompts(self, guesses: bool) -> None:
        running = [text for text in self.seats.running if self.seats.follow(text)]
        reading = [text for text in running if self._reads(text, guesses)]
        reading.sort(key=lambda text: text.served)
        blocks = deal(
            [text.unread for text in reading],
            self._sizes.widths,
            [text.border() for text in reading],
            self._settings.prefill_budget,
        )
        for width, numbers in gathered(blocks, self._sizes.together):
            texts = [reading[number] for number in numbers]
            fit = [text for text in texts if self._space(text, text.read + width)]
            fit = [text for text in fit if text.row is not None]  # none has given up its row since
            if fit:
                self._read(fit, width)

    def _reads(self, text: Text, guesses: bool) -> bool:
        """Whether it has tokens to be read by blocks; those of a text that writes with guesses may
        be more than one, and the step feeds them."""
        return text.unread > 1 and not (guesses and text.begun)

    def _space(self, text: Text, end: int) -> bool:
        return text.row is not None and self.seats.space(text, end)

    def _read(self, texts: Sequence[Text], width: int) -> None:
        scored = [text.request.scores_prompt and not text.begun for text in texts]
        follows = [text.block(width, ahead=1) for text in texts] if any(scored) else None
        pending = self._executor.read(
            Blocks(
                np.asarray([text.row for text in texts], np.int32),
                np.stack([text.block(width) for text in texts]),
                np.stack([text.table(self._sizes.row_pages) for text in texts]),
                None if follows is None else np.stack(follows),
            )
        )
        if any(scored):
            places = [place for place, one in enumerate(scored) if one]
            seats = tuple(Seat(texts[place], place, width) for place in places)
            starts = tuple(seat.text.read for seat in seats)
            self._flights.append(Flight(pending, seats, width, starts))
        self._last = None
        for text in texts:
            self._served += 1
            text.served = self._served
            text.read += width
            if not text.begun:
                self._done["read"] += width
                if text.read in text.borders:
                    self.seats.remember(text)

    # Writing.

    def _begin(self, guesses: bool) -> bool:
        """Begins a step of all rows that can write; False if there is none."""
        self._end_unwritten(guesses)
        texts = [text for text in self.seats.running if self._writes(text, guesses)]
        guessed = self._guesses(texts) if guesses else {}
        width = self._sizes.block if guesses else 1
        seats: list[Seat] = []
        blocks: list[list[int]] = []
        masks: list[np.ndarray | None] = []
        for text in texts:
            own = guessed.get(text.number, [])
            if text.row is None or not self.seats.space(text, text.read + text.unread + len(own)):
                continue
            row = text.row
            with self._guard(text):
                masks.append(text.allowed(self._sizes.vocab))
                known = text.known()
                seats.append(Seat(text, row, len(known), len(own)))
                blocks.append([*known, *own])
        if not seats:
            return False
        pending = self._executor.step(self._work(seats, blocks, masks, width))
        for seat in seats:
            if not seat.text.begun:
                self._done["read"] += 1
            seat.text.begun = True
            if width == 1:
                seat.text.read += 1
                seat.text.flying += 1
        self._flights.append(Flight(pending, tuple(seats), width))
        return True

    def _writes(self, text: Text, guesses: bool) -> bool:
        waits = text.leader is not None or (text.held and text.flying)
        return not waits and not self._reads(text, guesses) and text.room > 0

    def _end_unwritten(self, guesses: bool) -> None:
        """Ends texts whose prompts were asked about alone."""
        read = [text for text in self.seats.running if not text.request.max_tokens]
        read = [text for text in read if not self._reads(text, guesses)]
        if read:
            self._hear(0)
        for text in read:
            self._end(text, "length")

    def _guesses(self, texts: list[Text]) -> dict[int, list[int]]:
        """Guesses by number of a text: as many as the block and the text have room for."""
        asked = {}
        for text in texts:
            assert text.row is not None
            free = text.request.constraint is None and text.written >= text.request.min_tokens
            most = min(self._sizes.block - text.unread, text.room - 1) * free
            if most > 0:
                asked[text.row] = (text.tokens, most)
        assert self._draft is not None
        found = self._draft.guess(asked) if asked else {}
        return {text.number: found.get(text.row, []) for text in texts if text.row is not None}

    def _work(
        self,
        seats: list[Seat],
        blocks: list[list[int]],
        masks: list[np.ndarray | None],
        width: int,
    ) -> Work:
        sizes = self._sizes
        fills = self._draft.filler if self._draft and width > 1 else 0
        tokens = np.full((sizes.rows, width), fills, np.int32)
        pages = np.zeros((sizes.rows, sizes.row_pages), np.int32)
        known, guesses = np.zeros(sizes.rows, np.int32), np.zeros(sizes.rows, np.int32)
        for seat, block in zip(seats, blocks, strict=True):
            tokens[seat.row, : len(block)] = block
            known[seat.row], guesses[seat.row] = seat.known, seat.guesses
            pages[seat.row] = seat.text.table(sizes.row_pages)
        allowed = None
        if any(mask is not None for mask in masks):
            allowed = np.full((sizes.rows, -(-sizes.vocab // 32)), 0xFFFFFFFF, np.uint32)
            for seat, mask in zip(seats, masks, strict=True):
                if mask is not None:
                    allowed[seat.row] = mask
        return Work(tokens, known, guesses, pages, allowed)

    # Hearing.

    def _hear(self, left: int) -> None:
        """Takes results in the order in which they were asked for, until so many are left."""
        while len(self._flights) > left:
            flight = self._flights.popleft()
            found = flight.pending.result()
            if flight.starts is None:
                self._hear_step(flight, found)
                continue
            for seat, start in zip(flight.seats, flight.starts, strict=True):
                if seat.text.end is None:
                    with self._guard(seat.text):
                        seat.text.tell_prompt(start, found, seat.row)

    def _hear_step(self, flight: Flight, drawn: Drawn) -> None:
        now = self._clock()
        if self._last is not None and self._last[0] == flight.width:
            self._pace.timed(flight.width, now - self._last[1])
        self._last = flight.width, now
        for seat in flight.seats:
            text = seat.text
            if flight.width == 1:
                text.flying -= 1
            if text.end is not None:
                self._done["wasted"] += 1
                continue
            told = self._take(flight, seat, drawn)
            self._done["written"] += told
            self._done["passes"] += 1
            if flight.width > 1:
                self._done["guessed_written"] += told
                self._done["guessed_passes"] += 1
            self._ended(text)
            self._judge(text, flight.width, told)

    def _take(self, flight: Flight, seat: Seat, drawn: Drawn) -> int:
        text, right = seat.text, int(drawn.right[seat.row])
        if not drawn.sound[seat.row]:
            self._end(text, "error", "the logits are no numbers: the parameters are not sound")
            return 0
        if flight.width > 1:
            text.read += flight.width * (right == flight.width)
            self._done["guessed"] += seat.guesses
            self._done["accepted"] += right - seat.known
            self._done["fell"] += right - seat.known < seat.guesses
        before = text.request.continuation.tokens
        with self._guard(text):
            text.take(drawn, seat.row, seat.known)
        if flight.width > 1 and self._draft is not None:
            beyond = drawn.tokens[seat.row, right:] if right == seat.known + seat.guesses else ()
            self._draft.hear(seat.row, text.tokens, list(map(int, beyond)))
        return text.request.continuation.tokens - before

    def _judge(self, text: Text, width: int, new: int) -> None:
        """Tells the pace what a pass has given, and what it would have given with guesses."""
        draft, row = self._draft, text.row
        if draft is None:
            return
        if width > 1:
            text.plain = text.quiet = 0
            self._pace.guessed(text.number, new)
            return
        self._pace.wrote(new)
        if row is None:  # it has ended
            return
        if text.held:
            self._pace.held(new)
            return
        text.plain += new
        if text.plain < text.quiet:  # called for every token, so nothing is looked up or made
            return

        def guess(tokens: Sequence[int], most: int) -> list[int]:
            return draft.guess({row: (tokens, most)})[row]

        text.quiet = self._pace.plain(text.number, text.tokens, text.plain, guess)
        text.plain = 0
