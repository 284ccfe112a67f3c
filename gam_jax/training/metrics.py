"""Metrics of a run: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import resource
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import jax

from gam_jax.training.tensorboard import Board
from sharding.errors import UserError
from sharding.fault import reason
from sharding.json_file import BadJson, parse_json
from sharding.whole_file import append, check_place, replacing

MEMORY = {"device_peak_bytes": "device memory", "process_peak_bytes": "process memory"}
"""Metric -> what it is the peak of."""
LINE_BYTES = 1 << 20
"""A longer line is no row."""
MAX_STEP = 1 << 53
"""The largest step that is told exactly as a float."""


def peak_memory() -> dict[str, int]:
    """The most that was ever held: on the first device, where it tells, and by this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if "peak_bytes_in_use" in stats:
        found["device_peak_bytes"] = stats["peak_bytes_in_use"]
    return found


@dataclasses.dataclass(frozen=True)
class Log:
    """What a metrics.jsonl holds.

    Attributes:
      rows: its rows in order, each with a whole number "step" and a text "split".
      bad: number of a line that is no row, from 1, and what is wrong with it. A last line that
        was cut short is not among them: that is how a run looks that was killed.
    """

    rows: list[dict[str, Any]]
    bad: list[tuple[int, str]]

    def told(self) -> str:
        """One line on the bad lines; empty if there are none."""
        if not self.bad:
            return ""
        count, (line, reason) = len(self.bad), self.bad[0]
        lines = "1 line is no row" if count == 1 else f"{count} lines are no rows"
        return f"metrics.jsonl: {lines} and left out, the first is line {line}, which {reason}"


def read_log(path: pathlib.Path) -> Log:
    """The rows and the bad lines of a metrics.jsonl; none of either where there is no file."""
    if not path.is_file():
        return Log([], [])
    rows, bad = [], []
    with path.open("rb") as file:
        for number, line in enumerate(lines_of(file), 1):
            try:
                rows.append(_row(line))
            except BadJson as error:
                if line.endswith(b"\n"):
                    bad.append((number, error.reason))
    return Log(rows, bad)


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, see `read_log`."""
    return read_log(path).rows


def points(
    rows: Sequence[Mapping[str, Any]], split: str, value: str = "loss"
) -> list[tuple[int, float]]:
    """(step, value) of the rows of a split that have a finite one."""
    found = [row for row in rows if row["split"] == split and _is_finite(row.get(value))]
    return [(row["step"], float(row[value])) for row in found]


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= MAX_STEP


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines, as \\n alone parts them: JSON may hold other signs that Python takes for ends."""
    while line := file.readline(LINE_BYTES + 1):
        while not line.endswith(b"\n") and (more := file.readline(LINE_BYTES)):
            line = line[: LINE_BYTES + 1] + more[-1:]  # too long for a row: its end is enough
        yield line


def _row(line: bytes) -> dict[str, Any]:
    # Scores that are not finite are written as Python writes them, and read so.
    row = parse_json(line, "line", max_bytes=LINE_BYTES, finite=False)
    step, split = row.get("step"), row.get("split")
    if type(step) is not int or not 0 <= step <= MAX_STEP:
        raise BadJson("line", 'has no whole number "step"')
    if not isinstance(split, str):
        raise BadJson("line", 'has no text "split"')
    return row


class MetricsWriter:
    """Appends metrics as lines of JSON (step, split, loss, ...) and as TensorBoard scalars.

    What cannot be written later on ends nothing: it is told once. Lines wait until they can be
    written; TensorBoard gets no more.

    Args:
      path: metrics.jsonl; TensorBoard files go to `tensorboard/` beside it.
      from_step: lines of later steps are cut off, since the run goes on from here. Lines that
        are no rows stay, but for a last one that was cut short.
      writes: False writes nothing, as for all processes of a job but the first.
      say: is told, in a line, of lines that are no rows and of what cannot be written.
      aside: where to move lines that are cut off; None drops them, since the same steps will
        write them again.

    Raises:
      UserError: `path` is there and is no plain file.
      OSError: lines cannot be cut off.
    """

    def __init__(
        self,
        path: pathlib.Path,
        from_step: int = 0,
        writes: bool = True,
        say: Callable[[str], object] = lambda _: None,
        aside: pathlib.Path | None = None,
    ) -> None:
        self._writes, self._path, self._say = writes, path, say
        self._waiting: list[bytes] = []
        self._board: Board | None = None
        if not writes:
            return
        check_place(path)
        if told := read_log(path).told():
            say(told)
        moved = _cut(path, from_step, aside)
        if moved and aside is not None:
            say(f"{moved} lines of metrics of steps after {from_step} are in {aside} now")
        try:
            self._board = Board(path.parent / "tensorboard", from_step + 1)
        except (OSError, UserError) as error:
            self._without_board(error)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._waiting and not self._append():
            self._say(f"{len(self._waiting)} lines of {self._path} are lost")

    def write(self, step: int, split: str, **values: Any) -> None:
        """One line: the state after `step` updates, on "train" or "validation".

        TensorBoard is given the numbers alone.
        """
        if not self._writes:
            return
        line = json.dumps({"step": step, "split": split, **values}) + "\n"
        self._waiting.append(line.encode())
        self._append()
        if self._board is None:
            return
        numbers = {f"{split}/{n}": x for n, x in values.items() if isinstance(x, int | float)}
        try:
            self._board.write(step, numbers)
        except (OSError, UserError) as error:
            self._without_board(error)

    def _append(self) -> bool:
        """Writes the lines that wait; whether it could."""
        late = len(self._waiting) > 1
        try:
            append(self._path, b"".join(self._waiting))
        except (OSError, UserError) as error:
            if not late:
                self._say(
                    f"{self._path} cannot be written ({reason(error)}): lines wait until there "
                    f"is room, training goes on"
                )
            return False
        if late:
            self._say(f"{self._path} is written again, {len(self._waiting)} lines late")
        self._waiting.clear()
        return True

    def _without_board(self, error: Exception) -> None:
        self._board = None
        self._say(f"TensorBoard gets no more of this run ({reason(error)}), training goes on")


def _cut(path: pathlib.Path, step: int, aside: pathlib.Path | None) -> int:
    """Takes away the rows of later steps, and a last line that was cut short; makes the file.

    Returns:
      How many lines it has taken away.
    """
    kept, gone, whole = [], [], True
    if path.exists():
        with path.open("rb") as file:
            while line := file.readline():
                whole = line.endswith(b"\n")
                try:
                    stays = _row(line)["step"] <= step
                except BadJson:
                    stays = whole
                (kept if stays else gone).append(line if whole else line + b"\n")
        if not gone and whole:
            return 0
    if gone and aside is not None:
        append(aside, b"".join(gone))
    with replacing(path) as file:
        file.writelines(kept)
    return len(gone)
