"""A trace of a few training steps, for TensorBoard and Perfetto."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from sharding import processes
from sharding.errors import UserError

MOST_STEPS = 100
"""A trace of more is too large to be opened."""


@dataclasses.dataclass(frozen=True)
class Span:
    """Which steps are traced.

    Attributes:
      first: number of the first update, from 1.
      count: how many.
    """

    first: int
    count: int

    @property
    def last(self) -> int:
        """Number of the last update."""
        return self.first + self.count - 1

    @classmethod
    def parse(cls, text: str) -> Span:
        """From "STEP:COUNT".

        Raises:
          UserError: no two whole numbers, a step below 1, or no or too many steps.
        """
        found = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text, re.ASCII)
        if found is None:
            raise UserError(f"--profile={text[:60]}: write STEP:COUNT, as 10:3")
        span = cls(int(found[1]), int(found[2]))
        if span.first < 1:
            raise UserError(f"--profile={text}: the first step is 1")
        if not 1 <= span.count <= MOST_STEPS:
            raise UserError(f"--profile={text}: trace 1 to {MOST_STEPS} steps")
        return span

    def check(self, done: int, last: int, every: int = 1) -> None:
        """Raises a UserError if a run does not come through all the steps.

        Args:
          done: updates done before it begins.
          last: the step at which it ends.
          every: steps of a round, which is traced as a whole.
        """
        shown = f"--profile={self.first}:{self.count}"
        if (self.first - 1) % every or self.count % every:
            raise UserError(f"{shown}: a round is {every} steps, so trace whole ones, as 1:{every}")
        if self.last > last:
            raise UserError(f"{shown}: the run ends at step {last}, so trace steps up to it")
        if self.first <= done:
            raise UserError(f"{shown}: the run goes on after step {done}, so trace later steps")


class Tracer:
    """Traces the steps of a span on the first process of a job, whose program all have.

    What the profiler cannot write is said, and training goes on.

    Args:
      span: None traces nothing.
      folder: of the traces; each has a folder of its own in it.
      say: is told where the trace is.
    """

    def __init__(
        self, span: Span | None, folder: pathlib.Path, say: Callable[[str], object]
    ) -> None:
        self._span = span if processes.is_first() else None
        self._folder, self._say = folder, say
        self._begun: int | None = None

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(None, ())  # where an error ended the training

    def begins(self, step: int) -> bool:
        """Whether the update of that number is the first that is traced."""
        return self._span is not None and step == self._span.first

    def ends(self, step: int) -> bool:
        """Whether the update of that number is the last that is traced."""
        return self._begun is not None and self._span is not None and step == self._span.last

    def start(self, step: int, state: Any) -> None:
        """Begins a trace at an update, once the state before it is computed."""
        jax.block_until_ready(state)
        try:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._begun = step
        except (OSError, RuntimeError) as error:
            self._say(f"no trace: {' '.join(str(error).split())[:200]}; training goes on")

    def stop(self, step: int | None, state: Any) -> None:
        """Writes the trace that is open, if any, up to an update; None where that is not known."""
        if self._begun is None:
            return
        first, self._begun = self._begun, None
        jax.block_until_ready(state)
        try:
            jax.profiler.stop_trace()
            upto = "on" if step is None else f"to {step}"
            self._say(f"trace of steps {first} {upto} in {self._folder}")
        except (OSError, RuntimeError) as error:
            self._say(f"no trace: {' '.join(str(error).split())[:200]}; training goes on")
