"""One request in progress, as the host knows it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from gam_jax.continuations import OPEN
from gam_jax.serve.executor import LAST_DRAWN, Drawn, Scores
from gam_jax.serve.request import End, Request, Token


@dataclasses.dataclass
class Parked:
    """A text without a row: its state and pages as bytes, and how many pages those are."""

    data: bytes
    pages: int


class Text:
    """What is known of a request, what the device has been told to read of it, and where it is.

    Args:
      number: of the request.
      request: what was asked.

    Attributes:
      tokens: of the prompt, and those written that the host has seen.
      read: how many the device has been told to read; what it writes may be told a step ahead.
      flying: how many were drawn that the host has not seen: 0 or 1.
      row: where it is; None while it waits.
      pages: of the row, in order.
      cached: tokens of the prompt whose state was remembered.
      kept: tokens of the longest of its states that is remembered.
      borders: numbers of tokens after which its state is worth remembering.
      leader: a text with the same prompt that is being read, whose state it waits for.
      parked: its state, if it had to leave its row.
      seated: a number that grows with each text that gets its first row.
      served: a number that grows with each turn in which some of the prompt was read.
      opened: whether the first token of a prompt that is scored has been told.
      begun: whether a step has drawn for it.
      plain: tokens written without guesses that the pace has not been told of.
      quiet: of how many together it is to be told.
      end: what was told last; None while it runs.
      gone: whether its row and pages are free for good.
    """

    def __init__(self, number: int, request: Request) -> None:
        self.number, self.request = number, request
        self.tokens = list(request.prompt)
        self.read, self.flying, self.cached, self.kept = 0, 0, 0, 0
        self.row: int | None = None
        self.pages: list[int] = []
        self.borders: frozenset[int] = frozenset()
        self.parked: Parked | None = None
        self.seated, self.served, self.opened, self.begun = 0, 0, False, False
        self.plain, self.quiet = 0, 0
        self.leader: Text | None = None
        self.end: End | None = None
        self.gone = False

    @property
    def written(self) -> int:
        """Tokens that were written, and seen."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def unread(self) -> int:
        """Tokens that the device has, or the host, and that no program has been told to read."""
        return len(self.tokens) + self.flying - self.read

    @property
    def room(self) -> int:
        """Tokens that may still be drawn."""
        return self.request.max_tokens - self.written - self.flying

    @property
    def held(self) -> bool:
        """Whether what may be drawn next depends on what was drawn before."""
        return self.request.constraint is not None

    def border(self) -> int:
        """How many tokens there are to the next place that no block may go over; 0 for none."""
        return min((place - self.read for place in self.borders if place > self.read), default=0)

    def block(self, width: int, ahead: int = 0) -> np.ndarray:
        """The next tokens to be read; with `ahead`, those that stand so much further on."""
        begin = self.read + ahead
        return np.asarray(self.tokens[begin : begin + width], np.int32)

    def known(self) -> list[int]:
        """What a step feeds: all that is unread, `LAST_DRAWN` if the host has not seen it."""
        return [LAST_DRAWN] if self.flying else self.tokens[self.read :]

    def table(self, size: int) -> np.ndarray:
        """Its pages, padded with page 0."""
        pages = np.zeros(size, np.int32)
        pages[: len(self.pages)] = self.pages
        return pages

    def allowed(self, vocab: int) -> np.ndarray | None:
        """The words of a mask of what may be drawn next; None for anything."""
        request, words = self.request, -(-vocab // 32)
        mask = None
        if request.constraint is not None:
            mask = np.frombuffer(request.constraint.allowed(), "<u4", words).copy()
        ends = request.continuation.ends
        if self.written + self.flying < request.min_tokens and ends:
            own = np.full(words, 0xFFFFFFFF, np.uint32) if mask is None else mask.copy()
            for token in ends:
                if token < vocab:
                    own[token // 32] &= np.uint32(~(1 << (token % 32)) & 0xFFFFFFFF)
            mask = own if own.any() else mask
        return mask

    def tell_first(self) -> None:
        """Tells the first token of the prompt, which nothing stands before."""
        self.opened = True
        self.request.tell(Token(self.tokens[0], "", float("nan")))

    def tell_prompt(self, start: int, scores: Scores, row: int) -> None:
        """Tells the tokens of the prompt that follow those of a block, the scores' own `row`."""
        for place, log_prob in enumerate(scores.log_probs[row].tolist()):
            token, top = self.tokens[start + place + 1], self._top(scores, (row, place))
            self.request.tell(Token(token, "", log_prob, top))

    def take(self, drawn: Drawn, row: int, known: int) -> None:
        """Takes what a step has drawn, and tells it up to the end of the text.

        Args:
          drawn: by the step.
          row: where it was.
          known: tokens that were known in the step.
        """
        places = range(known - 1, int(drawn.right[row]))
        if self.held:
            places = places[:1]
        new = drawn.tokens[row, places].tolist()
        self.tokens += new
        for place, token in zip(places, new, strict=True):
            if self.end is None:
                top = self._top(drawn, (row, place))
                self._tell(token, float(drawn.log_probs[row, place]), top)

    def _tell(self, token: int, log_prob: float, top: tuple[tuple[int, float], ...]) -> None:
        request = self.request
        text = request.continuation.push([token])
        request.tell(Token(token, text, log_prob, top))
        if request.continuation.ended != OPEN:
            self.finish("stop")
            return
        if request.constraint is not None:
            request.constraint.push(token)
            if request.constraint.ended:
                self.finish("stop")
                return
        if request.continuation.tokens >= request.max_tokens:
            self.finish("length")

    def finish(self, reason: str, error: str = "") -> None:
        """Tells the end, once; an error if what is held back cannot be decoded."""
        if self.end is not None:
            return
        continuation, text = self.request.continuation, ""
        try:
            text = continuation.flush()
        except Exception as failure:
            reason, error = "error", error or described(failure)
        prompt = len(self.request.prompt)
        self.end = End(reason, text, prompt, self.cached, continuation.tokens, error)
        self.request.tell(self.end)

    def _top(self, found: Drawn | Scores, place: tuple[int, int]) -> tuple[tuple[int, float], ...]:
        count = self.request.draws.top
        if count <= 0:
            return ()
        ids, log_probs = found.top_ids[place][:count], found.top_log_probs[place][:count]
        pairs = zip(ids.tolist(), log_probs.tolist(), strict=True)
        return tuple((token, value) for token, value in pairs if value > -math.inf)


def described(error: Exception) -> str:
    """An error in one line, for who asked."""
    return f"{type(error).__name__}: {error}"
