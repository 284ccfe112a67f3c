"""What a person watching a run sees on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as RichProgress,
)

from gam_jax.training.scoring import Score


class Progress:
    """A bar with loss, speed and time left on a terminal; one line a validation elsewhere.

    Args:
      visible: False says nothing, as for all processes of a job but the first.
      title: what stands before the bar.
      lines: False shows the bar alone, as where a run is one of many.
    """

    def __init__(self, visible: bool = True, title: str = "training", lines: bool = True) -> None:
        self._title, self._lines = title, lines
        self.console = Console(stderr=True, highlight=False, quiet=not visible)
        self._bar: RichProgress | None = None

    def say(self, message: str) -> None:
        """A line above the bar."""
        if self._lines:
            self.console.print(message, soft_wrap=True, markup=False)

    @contextlib.contextmanager
    def training(self, step: int, last: int, per_step: int, unit: str) -> Iterator[None]:
        """Shows the bar from `step` to `last` while open.

        Args:
          step: where it begins.
          last: where it ends.
          per_step: units of a step.
          unit: what they are: tokens, images.
        """
        columns = (
            TextColumn(self._title, markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn(f"{{task.fields[speed]}} {unit}/s"),
            TextColumn("{task.fields[used]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        visible = self.console.is_terminal
        with RichProgress(*columns, console=self.console, disable=not visible) as bar:
            fields: dict[str, Any] = {"loss": "-", "speed": "-", "used": ""}
            self._task = bar.add_task("", total=last, completed=step, **fields)
            self._bar, self._per_step = bar, per_step
            yield
            self._bar = None

    def step(self, step: int, loss: float) -> None:
        """After each step."""
        if self._bar is None:
            return
        rate = self._bar.tasks[self._task].speed
        speed = "-" if rate is None else f"{rate * self._per_step:,.0f}"
        self._bar.update(self._task, completed=step, loss=f"{loss:.3f}", speed=speed)

    def used(self, mfu: float | None) -> None:
        """After each line of metrics: the share of the devices' peak, where it is known."""
        if self._bar is not None and mfu is not None:
            self._bar.update(self._task, used=f"MFU {mfu:.0%}")

    def validation(self, step: int, score: Score) -> None:
        """After each validation."""
        shown = (
            f"{name.replace('_', ' ')} {shown_score(name, x)}" for name, x in score.values.items()
        )
        self.say(f"step {step:>6}  validation {'  '.join(shown)}")


def shown_score(name: str, value: float) -> str:
    """A score as text: four decimals, or two of a perplexity."""
    return f"{value:,.2f}" if name == "perplexity" else f"{value:.4f}"
