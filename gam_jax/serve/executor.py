"""What the engine asks of the device: rows of texts in progress, read and written by few programs.

A row is one text in progress: its recurrent state or KV cache, and tokens that the model has not
read yet. Two programs do everything. `read` feeds blocks of prompts. `step` feeds the same number
of tokens of every row, and draws one more; in a block with guesses, a guess stands if it is the
token that the model draws itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int, UInt

LAST_DRAWN = -1
"""Stands for a token that the device has drawn in the step before, and the host has not seen."""
UNSURE = -1
"""Stands for what was drawn at a placeholder where no token is likely enough."""
MOST_TOP = 20
"""The most alternatives whose log probabilities are given out for a token."""
MOST_BIASED = 300
"""The most tokens of a row whose logits can be given a bias."""
TOGETHER, MOST_TOGETHER = 16, 4
"""Narrow blocks of several prompts are read at once: at most so many tokens, and so many rows."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What an executor was made for.

    Attributes:
      rows: S, texts in progress at once.
      widths: of the blocks of a prompt, falling to 1. A prompt is read in as many of the first as
        it has, then of the next; but its last token, which a step feeds.
      block: W, tokens of a row in a step with guesses; 1 where there is no draft.
      page: tokens of a page of a growing cache; 0 where no cache grows.
      pages: of all rows together. Page 0 belongs to nobody: what idle rows write lands there.
      row_pages: N, the most pages of a row; 0 where no cache grows.
      limit: the most tokens of a row; 0 for any number.
      vocab: V.
    """

    rows: int
    widths: tuple[int, ...]
    block: int
    page: int
    pages: int
    row_pages: int
    limit: int
    vocab: int

    def together(self, width: int) -> int:
        """R, the most rows whose blocks of so many tokens are read at once.

        Reading a few tokens costs about one pass over all parameters, which several rows share.
        """
        return max(1, min(self.rows, MOST_TOGETHER, TOGETHER // width))


@dataclasses.dataclass(frozen=True)
class Draws:
    """How tokens of one row are drawn; `gam_jax.sampling` has the equations.

    Attributes:
      temperature: 0 takes the likeliest token.
      top_p: draw from the likeliest tokens of this probability; 1 for all.
      top_k: draw from that many likeliest tokens; 0 for all.
      min_p: draw from tokens at least this part as likely as the likeliest.
      repetition_penalty: above 1, tokens that were read or written become less likely.
      presence_penalty: taken from the logit of each token that was written.
      frequency_penalty: taken from it as often as it was written.
      bias: what is added to logits, by id; at most `MOST_BIASED`.
      top: the likeliest tokens whose log probabilities are given out, at most `MOST_TOP`; 0 for
        that of the token alone, -1 for none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    top: int = -1


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Blocks of prompts, of as many tokens each; nothing is drawn.

    Attributes:
      rows: int32 [R]: whose they are, no row twice; at most `Sizes.together` of them.
      tokens: int32 [R, W], W one of `Sizes.widths`.
      pages: int32 [R, N]: see `Work`; those for this block too.
      follows: int32 [R, W]: the token after each of a block, to be scored; None for no scores.
    """

    rows: Int[np.ndarray, " R"]
    tokens: Int[np.ndarray, "R W"]
    pages: Int[np.ndarray, "R N"]
    follows: Int[np.ndarray, "R W"] | None = None


@dataclasses.dataclass(frozen=True)
class Work:
    """One step of all rows.

    Attributes:
      tokens: int32 [S, W]: what is known first, then guesses. `LAST_DRAWN` in the first place
        for the token that this row drew in the step before (W = 1 alone).
      known: int32 [S]: how many of them are known; 0 for a row that does nothing, and that keeps
        its state, whatever else is said of it here.
      guesses: int32 [S]: how many guesses follow them. What fills up the rest of the W places are
        any ids of the vocabulary, or a model's placeholders, and they never stand.
      pages: int32 [S, N]: the pages of each row's growing caches, in order, those for this block
        too; 0 where it has none.
      allowed: uint32 [S, ceil(V / 32)], the lowest bit first: tokens that may be drawn after what
        is known; None for all. Rows with a constraint are given no guesses.
    """

    tokens: Int[np.ndarray, "S W"]
    known: Int[np.ndarray, S]
    guesses: Int[np.ndarray, S]
    pages: Int[np.ndarray, "S N"]
    allowed: UInt[np.ndarray, "S Q"] | None = None


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a step has found, on the host.

    Attributes:
      tokens: int32 [S, W]: what was drawn after each token of the block. Of a row with n known
        tokens, those from place n - 1 to `right` - 1 are its new text, the last of them not read.
        At placeholders, what stands for a token after the text, or `UNSURE`.
      right: int32 [S]: how many tokens of the block stand, those that are known and the guesses
        that were drawn. The row has read the block if that is W; else it has read nothing of it.
      sound: bool [S]: whether the logits of its new text were numbers.
      log_probs: float32 [S, W], of the tokens drawn, before all settings; 0 in rows that asked for
        none.
      top_ids: int32 [S, W, MOST_TOP], the likeliest tokens; zeros likewise.
      top_log_probs: float32 [S, W, MOST_TOP], theirs; -inf where there are no more tokens.
    """

    tokens: Int[np.ndarray, "S W"]
    right: Int[np.ndarray, S]
    sound: Bool[np.ndarray, S]
    log_probs: Float[np.ndarray, "S W"]
    top_ids: Int[np.ndarray, "S W N"]
    top_log_probs: Float[np.ndarray, "S W N"]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What `read` tells of blocks when asked, on the host.

    Attributes:
      log_probs: float32 [R, W], of the token that follows each token of a block.
      top_ids: int32 [R, W, MOST_TOP].
      top_log_probs: float32 [R, W, MOST_TOP].
    """

    log_probs: Float[np.ndarray, "R W"]
    top_ids: Int[np.ndarray, "R W N"]
    top_log_probs: Float[np.ndarray, "R W N"]


Saved = Any
"""A row's state without its pages, on the device; `bytes_of` makes bytes of it."""


class Pending(Protocol):
    """What the device has been told to do, and may not have done yet."""

    def result(self) -> Any:
        """`Drawn` of a step, `Scores` or None of a read; waits for it."""
        ...


class Executor(Protocol):
    """Rows on a device or a mesh. All calls come from one thread, and return at once.

    A call's effect is seen by all later calls. Nothing that is asked for compiles anything after
    `compile`.

    Attributes:
      sizes: what it was made for.
      fingerprint: equal for equal models with equal parameters: a state that was saved belongs to
        one of these.
    """

    sizes: Sizes
    fingerprint: str

    def compile(self) -> tuple[str, ...]:
        """Compiles every program that there is, and returns their names."""
        ...

    def seat(
        self,
        row: int,
        key: int,
        draws: Draws,
        seen: Int[np.ndarray, T],
        written: Int[np.ndarray, N] | None = None,
    ) -> None:
        """Gives a row to a text: what it draws with, and what counts as seen or written before.

        What the row draws in later steps counts as written.

        Args:
          row: its number.
          key: the seed; the token at place i of the text, the prompt's first being at 0, is drawn
            with fold_in(jax.random.key(seed), i).
          draws: the settings.
          seen: ids of the prompt, for the repetition penalty.
          written: ids that were written before the row was seated, for all penalties; None for
            none.
        """
        ...

    def load(self, row: int, saved: Saved | None) -> None:
        """Puts a state in the place of a row's own; None for the start of a text."""
        ...

    def save(self, row: int) -> Saved:
        """A copy of a row's state, without its pages."""
        ...

    def copy_page(self, source: int, target: int) -> None:
        """Copies a page of every growing cache."""
        ...

    def read(self, blocks: Blocks) -> Pending:
        """Feeds blocks of prompts, a row each."""
        ...

    def step(self, work: Work) -> Pending:
        """Feeds W tokens of each row, W being 1 or `Sizes.block`, and draws."""
        ...

    def guess(self, work: Int[np.ndarray, "S N+1"]) -> Int[np.ndarray, "S G"]:
        """What follows rows by a drafter that reads what the model finds; waits for it.

        Only of an executor with a drafter. Guesses are drawn as the rows draw, with their keys.

        Args:
          work: the last N tokens of each row, N being the drafter's window, and how many there are
            in all; 0 for a row for which nothing is asked.
        """
        ...

    def bytes_of(self, saved: Saved, pages: tuple[int, ...]) -> bytes:
        """A row's state and the content of its pages, for a file; it waits for the device."""
        ...

    def from_bytes(self, data: bytes, pages: tuple[int, ...]) -> Saved:
        """The inverse, into pages that are the caller's.

        Raises:
          UserError: data of another model, or damaged.
        """
        ...

    def row_bytes(self) -> tuple[int, int]:
        """Bytes of a row's state without pages, and of one page of all caches."""
        ...

    def sleep(self) -> None:
        """Moves the parameters to the host's memory, and gives up all rows and pages.

        Nothing but `wake` may be called next; states that were saved must be bytes by then.
        """
        ...

    def wake(self) -> None:
        """The inverse: the parameters come back, and rows have read nothing. Compiles nothing."""
        ...
