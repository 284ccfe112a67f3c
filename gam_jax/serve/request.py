"""What is asked of the engine, and what it answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

from gam_jax.continuations import Continuation
from gam_jax.serve.executor import Draws
from gam_jax.serve.rejection import tokens_a_pass


class Constraint(Protocol):
    """What may be written next, by what was written before."""

    @property
    def ended(self) -> bool:
        """Whether the text is whole: nothing but an end can follow."""
        ...

    def allowed(self) -> bytes:
        """A bit for each id of the vocabulary, the lowest first, in words of 32 bits."""
        ...

    def push(self, token: int) -> None:
        """Takes a token that was written."""
        ...


@dataclasses.dataclass(frozen=True)
class Token:
    """A token that was read from the model.

    Attributes:
      id: of the vocabulary.
      text: what the text grows by; what may begin a stop text is held back, so it may be empty.
      log_prob: before temperature and filters.
      top: the likeliest tokens with their log probabilities, as many as were asked for.
    """

    id: int
    text: str
    log_prob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class End:
    """The end of an answer.

    Attributes:
      reason: "stop", "length", "cancelled" or "error".
      text: what was held back and belongs to the text after all.
      prompt_tokens: of the prompt.
      cached_tokens: of these, how many were not read, since their state was remembered.
      completion_tokens: that were written.
      error: what happened, where the reason is "error".
    """

    reason: str
    text: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    error: str = ""


@dataclasses.dataclass(frozen=True)
class Request:
    """One text to be continued. `n` answers to one prompt are n requests.

    Attributes:
      prompt: ids, at least one.
      max_tokens: the most that may be written.
      draws: how tokens are drawn.
      continuation: decodes what is written, and knows stop ids and stop texts.
      tell: called by the engine's thread with each `Token` and, last, one `End`.
      seed: of the draws.
      min_tokens: stop ids are not drawn before so many.
      user: who asks; turns are taken between users.
      constraint: what may be written; None for anything.
      scores_prompt: whether the prompt's own tokens are told first, each with its log probability.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    draws: Draws
    continuation: Continuation
    tell: Callable[[Token | End], None]
    seed: int
    min_tokens: int = 0
    user: str = ""
    constraint: Constraint | None = None
    scores_prompt: bool = False


class Full(Exception):
    """The queue has no room; try again after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the queue is full: try again in {seconds:.0f} s")
        self.seconds = seconds


class Closed(Exception):
    """The engine takes no more requests: it is being stopped, or has failed."""


@dataclasses.dataclass(frozen=True)
class Counts:
    """What an engine has done and has in hand, for `/metrics`.

    Attributes:
      queued: requests that wait for a row.
      rows: in use.
      pages: in use.
      read: tokens of prompts that were fed.
      cached: tokens of prompts that were not, since their state was remembered.
      written: tokens that were given out.
      wasted: steps of a row whose token was cut off, since its end was seen late.
      guessed: guesses that were fed.
      accepted: guesses that stood.
      fell: guesses that did not; those after one that fell were not judged.
      passes: of a row, in steps that drew; written / passes is 1 without guesses.
      guessed_passes: of these, in steps with guesses.
      guessed_written: tokens that these gave.
      block: W, tokens of a row in a step with guesses; 1 for none.
      requests: that have ended, by their reason.
      loaded: whether the model is on the device.
      hits: requests that were taken in while it was, or was coming for another one.
      misses: times that it had to come for a request.
      loading_seconds: that this took, all together.
    """

    queued: int = 0
    rows: int = 0
    pages: int = 0
    read: int = 0
    cached: int = 0
    written: int = 0
    wasted: int = 0
    guessed: int = 0
    accepted: int = 0
    fell: int = 0
    passes: int = 0
    guessed_passes: int = 0
    guessed_written: int = 0
    block: int = 1
    requests: tuple[tuple[str, int], ...] = ()
    loaded: bool = True
    hits: int = 0
    misses: int = 0
    loading_seconds: float = 0.0

    @property
    def acceptance(self) -> float:
        """The part of the guesses that were judged that stood; NaN where none was."""
        judged = self.accepted + self.fell
        return self.accepted / judged if judged else math.nan

    @property
    def tokens_a_pass(self) -> float:
        """Tokens that a pass with guesses has given; NaN where there was none."""
        passes = self.guessed_passes
        return self.guessed_written / passes if passes else math.nan

    @property
    def ideal_tokens_a_pass(self) -> float:
        """What it would give if each pass had W - 1 guesses of this acceptance, see `rejection`.

        Less comes where a guess falls and the next block has tokens to read again, where a draft
        knows fewer guesses, and at the end of a text.
        """
        return tokens_a_pass(self.acceptance, self.block - 1)


class Engine(Protocol):
    """Requests on an executor, by one thread of its own."""

    def submit(self, request: Request) -> int:
        """Puts a request in the queue, from any thread, and returns its number.

        Raises:
          Full: no room in the queue.
          Closed: it is being stopped, or has failed.
          UserError: a prompt that cannot be served: too long (both numbers), an id that is none.
        """
        ...

    def cancel(self, number: int) -> None:
        """Ends a request; its row and pages are free by the end of the next step."""
        ...

    def counts(self) -> Counts:
        """What it has done."""
        ...

    def failure(self) -> str:
        """Why it has stopped by itself, as an executor that failed; empty while it runs."""
        ...

    def start(self) -> None:
        """Starts the thread."""
        ...

    def stop(self, seconds: float) -> None:
        """Takes no more requests, lets running ones end for so long, cancels the rest, and ends."""
        ...
