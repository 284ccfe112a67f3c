"""Metrics of a run: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import pathlib
import resource
import sys
from typing import Any

import jax
from tensorboardX import SummaryWriter

from gam_jax.training.folder import write_atomically

MEMORY = {"device_peak_bytes": "device memory", "process_peak_bytes": "process memory"}
"""Metric -> what it is the peak of."""


def peak_memory() -> dict[str, int]:
    """The most that was ever held: on the first device, where it tells, and by this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if "peak_bytes_in_use" in stats:
        found["device_peak_bytes"] = stats["peak_bytes_in_use"]
    return found


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line that was cut short is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class MetricsWriter:
    """Appends metrics as lines of JSON (step, split, loss, ...) and as TensorBoard scalars.

    Args:
      path: metrics.jsonl; TensorBoard files go to `tensorboard/` beside it.
      from_step: lines of later steps are cut off, since the run goes on from here.
      writes: False writes nothing, as for all processes of a job but the first.
    """

    def __init__(self, path: pathlib.Path, from_step: int = 0, writes: bool = True) -> None:
        self._writes = writes
        if not writes:
            return
        kept = [row for row in read_metrics(path) if row["step"] <= from_step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a")
        self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=from_step + 1)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._file.close()
            self._board.close()

    def write(self, step: int, split: str, **values: Any) -> None:
        """One line: the state after `step` updates, on "train" or "validation".

        TensorBoard is given the numbers alone.
        """
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{split}/{name}", value, step)
