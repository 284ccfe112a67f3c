"""Whether guesses pay: tokens a pass against what a pass with guesses costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Guess = Callable[[Sequence[int], int], list[int]]
"""Tokens so far, and how many at most may be guessed -> guesses."""

MEMORY = 1 / 24
"""The part of an average that the newest value is."""
MARGIN = 1.15
"""How much more than it costs a pass with guesses must give to be begun with; to go on, as much.
Between the two nothing changes, since each change of mode has tokens read again."""
EXCESS = 0.04
"""The part of all time that guesses may have cost more than they gave."""
PAUSE, LONGEST = 3, 63
"""Tokens, see `Shadow`."""
TRIAL = 8
"""Passes by which a draft that was given up is tried again."""
HOPE = 1.4
"""What is thought of a draft at its trial, in costs of its passes."""


class Shadow:
    """The passes in which a text would have been written with guesses, while it is without.

    Args:
      block: tokens of a pass.
      pause: tokens for which nothing is guessed after a pass in which no guess stood, and about
        twice as many after each further one, up to `LONGEST`: guessing for a text that cannot be
        guessed takes time too. Each `pause` + 1 of them count as a pass without a right guess.
    """

    def __init__(self, block: int, pause: int = 0) -> None:
        self._block, self._unread, self._pause, self._left = block, 1, pause, 0
        self._waits = pause
        self._guesses: list[int] | None = None
        self._stood = 0

    @property
    def pause(self) -> int:
        """Tokens for which nothing will be guessed."""
        return self._left

    def push(self, tokens: Sequence[int], new: int, guess: Guess) -> list[int]:
        """Takes tokens that were written.

        Args:
          tokens: so far, with the new ones.
          new: how many of them are new.
          guess: the draft.

        Returns:
          How many tokens each pass would have given that is whole by now.
        """
        passes: list[int] = []
        for end in range(len(tokens) - new + 1, len(tokens) + 1):
            guesses, stood = self._guesses, self._stood
            if guesses is not None:
                if stood < len(guesses) and guesses[stood] == tokens[end - 1]:
                    self._stood += 1
                    continue
                passes.append(stood + 1)
                right = self._unread + stood
                self._unread = 1 if right == self._block else right + 1
                if stood:
                    self._waits = self._pause
                elif self._pause:
                    self._unread, self._left, self._guesses = 1, self._waits, None
                    self._waits = min(2 * self._waits + 1, LONGEST)
            if self._left:
                passes += [1] * (self._left % (self._pause + 1) == 0)
                self._left -= 1
                continue
            known = tokens if end == len(tokens) else tokens[:end]
            self._guesses, self._stood = guess(known, self._block - self._unread), 0
        return passes


class Pace:
    """Averages of what passes give and cost, and whether the next one is with guesses.

    Args:
      block: tokens of a row in a pass with guesses.
      free: whether guesses cost nothing, so that they are judged before one is fed; else they are
        tried first.
      cost: of a pass with guesses, in plain ones; a guess until both were timed.
    """

    def __init__(self, block: int, free: bool = True, cost: float = 2.0) -> None:
        self._block, self._free = block, free
        self.rate = 1.0 if free else HOPE * cost
        self._seconds = {1: 1.0, block: cost}
        self._timed: set[int] = set()
        self._excess, self._total, self._on = 0.0, 0.0, False
        self._shadows: dict[int, Shadow] = {}

    @property
    def cost(self) -> float:
        """Of a pass with guesses, in plain ones."""
        return max(self._seconds[self._block] / self._seconds[1], 1.0)

    def timed(self, width: int, seconds: float) -> None:
        """Takes the seconds of a pass of some width; none if no clock runs.

        What is kept is a running median: a pass that had to wait for the machine counts as one.
        """
        if seconds <= 0:
            return
        if not self._timed:  # all were in a unit of its own
            unit = seconds / self._seconds[width]
            self._seconds = {width: unit * number for width, number in self._seconds.items()}
            self._excess, self._total = self._excess * unit, self._total * unit
        elif width not in self._timed:
            self._seconds[width] = seconds
        self._timed.add(width)
        self._seconds[width] *= 1 + MEMORY * (1 if seconds > self._seconds[width] else -1)

    def wrote(self, new: int) -> None:
        """Takes how many tokens a plain pass has given a text: what has been spent so far."""
        self._total += new * self._seconds[1]

    def plain(self, number: int, tokens: Sequence[int], new: int, guess: Guess) -> int:
        """Judges guesses by what plain passes have given a text, see `Shadow.push`.

        Returns:
          After how many more tokens it is to be called again: none of those before is guessed.
        """
        if not self._free:
            return LONGEST
        shadow = self._shadows.get(number)
        if shadow is None:
            shadow = self._shadows[number] = Shadow(self._block, PAUSE)
        for gave in shadow.push(tokens, new, guess):
            self._gave(gave)
        return shadow.pause + 1

    def guessed(self, number: int, new: int) -> None:
        """Takes how many tokens a pass with guesses has given a text."""
        self._shadows.pop(number, None)
        spent = self._seconds[self._block]
        self._total += spent
        self._excess = max(self._excess + spent - new * self._seconds[1], 0)
        self._gave(new)

    def held(self, new: int) -> None:
        """Takes tokens of a text for which nothing may be guessed: no pass gives it more."""
        if self._free:
            for _ in range(new):
                self._gave(1)

    def left(self, number: int) -> None:
        """Forgets a text."""
        self._shadows.pop(number, None)

    def pays(self) -> bool:
        """Whether the next pass is to be with guesses."""
        if self._block == 1:
            return False
        least = self.cost * (1 if self._on else MARGIN)
        self._on = self.rate > least and self._excess <= EXCESS * self._total + self._trial
        if not self._on and not self._free and self._excess + self._trial <= EXCESS * self._total:
            self.rate, self._on = HOPE * self.cost, True
        return self._on

    @property
    def _trial(self) -> float:
        return TRIAL * self._seconds[self._block]

    def _gave(self, tokens: int) -> None:
        self.rate += (tokens - self.rate) * MEMORY
