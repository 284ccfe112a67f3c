"""history.jsonl: a line for each start of a run, with what was changed and left out."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gam_jax.training.metrics import LINE_BYTES, lines_of
from sharding.json_file import BadJson, parse_json
from sharding.whole_file import append

BATCH = "train.batch"


@dataclasses.dataclass(frozen=True)
class Began:
    """A start of a run.

    Attributes:
      step: from which it went on; 0 for the beginning.
      time: when, in UTC.
      which: what was asked for: latest, latest-good, best or a step.
      position: global batches that the data stood at.
      changed: fields of the configuration that are others from here on: name -> [before, now].
      skipped: batches that were passed over.
      rows: of the training stream that a new size of the batch left out, to begin at a whole one.
      aside: checkpoints that were put aside.
      versions: of libraries.
      compiler: variables that tell XLA how to compile.
      mesh: sizes of its axes.
      processes: of the job.
    """

    step: int
    time: str = ""
    which: str = ""
    position: int = 0
    changed: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    skipped: int = 0
    rows: int = 0
    aside: Sequence[str] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    compiler: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mesh: str = ""
    processes: int = 1

    def told(self) -> list[str]:
        """What this start did otherwise than the one before, each in a few words."""
        said = [
            f"{name}: {json.dumps(before)} -> {json.dumps(now)}"
            for name, (before, now) in self.changed.items()
        ]
        if self.skipped:
            said.append(f"{self.skipped:,} batches skipped")
        if self.rows:
            said.append(f"{self.rows:,} rows left out")
        if self.aside:
            said.append(f"put aside: {', '.join(self.aside)}")
        return said


def note(path: pathlib.Path, began: Began) -> None:
    """Adds a start, now.

    Raises:
      OSError: it cannot be written.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    line = json.dumps(dataclasses.asdict(dataclasses.replace(began, time=now)))
    append(path, line.encode() + b"\n")


def read_history(path: pathlib.Path) -> list[Began]:
    """The starts that a file tells of; lines that cannot be read are left out."""
    if not path.is_file():
        return []
    found = []
    with path.open("rb") as file:
        for line in lines_of(file):
            try:
                found.append(_began(parse_json(line, "line", max_bytes=LINE_BYTES, finite=False)))
            except BadJson:
                continue
    return found


def _began(values: dict[str, Any]) -> Began:
    own = {field.name: field.default for field in dataclasses.fields(Began)}
    kinds = {"changed": dict, "aside": list, "versions": dict, "compiler": dict}
    for name, default in own.items():
        kind = kinds.get(name, int if name == "step" else type(default))
        if type(values.get(name, kind())) is not kind:
            raise BadJson("line", f"has another {name} than a start has")
    changed = values.get("changed", {})
    if "step" not in values or any(type(x) is not list or len(x) != 2 for x in changed.values()):
        raise BadJson("line", "is no start")
    return Began(**{name: value for name, value in values.items() if name in own})


def skipped_from(history: Sequence[Began], step: int) -> int:
    """Batches that the last start from a step passed over."""
    return next((began.skipped for began in reversed(history) if began.step == step), 0)


def batches(history: Sequence[Began], batch: int) -> list[tuple[int, int]]:
    """The sizes of the batch on the way that a run has come: (step, rows from there on).

    Args:
      history: of the run.
      batch: of its configuration now.
    """
    changes = [began for began in history if _sizes(began)]
    size = _sizes(changes[0])[0] if changes else batch
    found = [(0, size)]
    for began in history:
        size = _sizes(began)[1] if _sizes(began) else size
        found = [(step, rows) for step, rows in found if step < began.step]
        if not found or found[-1][1] != size:
            found.append((began.step, size))
    return found


def _sizes(began: Began) -> Sequence[int]:
    sizes = began.changed.get(BATCH, ())
    return sizes if all(type(size) is int for size in sizes) else ()
