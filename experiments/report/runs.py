"""What a run folder tells: settings, curves, and the figures that runs are compared by."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from gam_jax.config import flatten, from_dict
from gam_jax.params import count_params
from gam_jax.training.experiment import Experiment
from gam_jax.training.folder import RunFolder, read_baselines
from gam_jax.training.history import Began, batches, read_history
from gam_jax.training.metrics import points, read_log
from sharding.errors import UserError

Points = list[tuple[float, float]]

PER_SECOND = "_per_second"
"""How the metric of speed ends, after its unit."""
TEXT = (
    "data.name",
    "data.validation_fraction",
    "data.format",
    "data.loss",
    "train.validation_tokens",
)
"""Fields that decide which text a run is validated on."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as its folder tells it; a figure that is not known is None.

    Attributes:
      name: what tells it from the other runs of the report.
      config: flat, dotted fields.
      rows: lines of metrics.jsonl.
      baselines: name -> loss, perplexity, bits_per_byte; empty if none were saved.
      experiment: the configuration as dataclasses; None where this version cannot read it.
      unread: why not.
      bad_lines: what is wrong with its metrics.jsonl; empty if nothing is.
      history: its starts, see `gam_jax.training.history`.
    """

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    baselines: dict[str, dict[str, float]]
    experiment: Experiment | None
    unread: str = ""
    bad_lines: str = ""
    history: Sequence[Began] = ()

    def points(self, split: str, value: str = "loss") -> Points:
        """(step, value) of the lines that have a finite one."""
        return [(step, v) for step, v in points(self.rows, split, value)]

    def final(self, value: str) -> float | None:
        """The value of the last validation."""
        points = self.points("validation", value)
        return points[-1][1] if points else None

    @property
    def steps(self) -> int:
        """Updates done, as far as the metrics tell."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def asked_steps(self) -> int | None:
        """Updates in the whole schedule."""
        return self.config.get("train.steps")

    @functools.cached_property
    def unit(self) -> str:
        """What its speed counts: tokens, images, rows."""
        names = (name for row in self._lines("train") for name in row)
        found = (name.removesuffix(PER_SECOND) for name in names if name.endswith(PER_SECOND))
        return next(found, "tokens" if "data.window" in self.config else "rows")

    def units_at(self, step: float) -> float | None:
        """Units trained on up to a step, whatever sizes the batch has had on the way."""
        batch, window = self.config.get("train.batch"), self.config.get("data.window")
        if not batch or (self.unit == "tokens" and not window):
            return None
        sizes = [*batches(self.history, batch), (math.inf, 0)]
        rows = sum(
            (min(step, end) - begin) * size
            for (begin, size), (end, _) in itertools.pairwise(sizes)
            if begin < step
        )
        return rows * window if self.unit == "tokens" and window else rows

    @property
    def units(self) -> int | None:
        """Units trained on."""
        units = self.units_at(self.steps)
        return None if units is None else int(units)

    @property
    def scores(self) -> list[str]:
        """The scores that its validations have, the loss first."""
        names = dict.fromkeys(name for row in self._lines("validation") for name in row)
        return [name for name in names if name not in ("step", "split")]

    @functools.cached_property
    def speed(self) -> float | None:
        """Median of the logged units per second."""
        speeds = sorted(v for _, v in self.points("train", self.unit + PER_SECOND) if v > 0)
        return speeds[len(speeds) // 2] if speeds else None

    def seconds_at(self, step: float) -> float | None:
        """Training time up to a step, from the logged speeds: no compiling, no validation."""
        if self.speed is None or self.units_at(0) is None:
            return None
        seconds, before = 0.0, 0.0
        for at, speed in self.points("train", self.unit + PER_SECOND):
            reached = self.units_at(min(at, step)) or 0.0
            seconds += (reached - before) / (speed or self.speed)
            before = reached
            if at >= step:
                return seconds
        return seconds + ((self.units_at(step) or 0.0) - before) / self.speed

    @property
    def seconds(self) -> float | None:
        """Training time of the whole run."""
        return self.seconds_at(self.steps)

    @functools.cached_property
    def parameters(self) -> int | None:
        """Numbers that the model learns."""
        return self.experiment and count_params(self.experiment.model.table())

    @functools.cached_property
    def carry_bytes(self) -> int | None:
        """What one stream hands to its next token; None of a model without a state."""
        return self.experiment and self.experiment.model.carry_bytes(1)

    def peak_bytes(self, kind: str) -> float | None:
        """The largest logged value of one of `metrics.MEMORY`."""
        return max((v for _, v in self.points("train", kind)), default=None)

    def median(self, value: str) -> float | None:
        """The median of what its lines of training tell, such as `mfu`."""
        found = [v for _, v in self.points("train", value)]
        return statistics.median(found) if found else None

    def share(self, value: str) -> float | None:
        """The share of the logged steps' time that seconds of this name are."""
        part, whole = (dict(self.points("train", name)) for name in (value, "step_seconds"))
        both = part.keys() & whole.keys()
        total = sum(whole[step] for step in both)
        return sum(part[step] for step in both) / total if total > 0 else None

    def _lines(self, split: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("split") == split]


def read_runs(paths: Sequence[str]) -> list[Run]:
    """The runs of some folders, best first: least loss of the last validation.

    A folder that holds run folders stands for all of them.

    Raises:
      UserError: no folder given, or one that neither is a run nor holds any.
    """
    if not paths:
        raise UserError("name one run folder or more, as in: gam report runs/*")
    folders: dict[pathlib.Path, None] = {}
    for path in paths:
        folders.update(dict.fromkeys(_folders(pathlib.Path(path))))
    named = zip(_names(list(folders)), folders, strict=True)
    runs = [_read(name, RunFolder(path)) for name, path in named]
    score = measure(runs)
    return sorted(runs, key=lambda run: (run.final(score) or math.inf, run.name))


def measure(runs: Sequence[Run]) -> str:
    """What runs are ranked by: loss, or bits per byte where their tokens are not the same."""
    known = any(run.final("bits_per_byte") is not None for run in runs)
    return "bits_per_byte" if known and not _same_tokens(runs) else "loss"


def _same_tokens(runs: Sequence[Run]) -> bool:
    fields = ("data.tokenizer", "model.vocab")
    return len({tuple(map(run.config.get, fields)) for run in runs}) <= 1


def shared_baselines(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """The baselines, if all runs that have any have the same ones."""
    found = [run.baselines for run in runs if run.baselines]
    return found[0] if found and all(other == found[0] for other in found) else {}


def turns(runs: Sequence[Run]) -> list[tuple[int, Began]]:
    """The starts at which a run changed, left out or went back: (place of the run, start)."""
    return [(i, began) for i, run in enumerate(runs) for began in run.history if began.told()]


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Field -> its value in each run, for the fields that are not the same in all; None: unset."""
    fields = sorted({field for run in runs for field in run.config})
    values = {field: [run.config.get(field) for run in runs] for field in fields}
    return {field: row for field, row in values.items() if any(v != row[0] for v in row)}


def cautions(runs: Sequence[Run]) -> list[str]:
    """What a reader of the figures must know."""
    notes = []
    for run in runs:
        asked, points = run.asked_steps, run.points("validation")
        if run.unread:
            notes.append(f"{run.name}: parameters and carry are unknown ({run.unread}).")
        if run.bad_lines:
            notes.append(f"{run.name}: {run.bad_lines}.")
        if asked and run.steps < asked:
            notes.append(f"{run.name} stands at step {run.steps:,} of {asked:,}.")
        if not points:
            notes.append(f"{run.name} has no validation yet.")
        elif (best := min(points, key=lambda point: point[1]))[1] < points[-1][1]:
            notes.append(f"{run.name} was at {best[1]:.4f} at step {best[0]:,}, then it rose.")
    changed = differences(runs)
    told = [{value for value in changed.get(field, ()) if value is not None} for field in TEXT]
    if any(len(values) > 1 for values in told):  # None: of a version before the field
        notes.append("The runs were not validated on the same text: their losses differ by that.")
    if measure(runs) == "bits_per_byte":
        notes.append("Their tokens are not the same either: they are ranked by bits per byte.")
    elif not _same_tokens(runs):
        notes.append("Their tokens are not the same, and without bits per byte losses say little.")
    return notes


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
    if RunFolder(path).config.is_file():
        return [path.resolve()]
    inside = sorted(path.iterdir()) if path.is_dir() else []
    if found := [child.resolve() for child in inside if RunFolder(child).config.is_file()]:
        return found
    raise UserError(
        f"{path} is no run folder (no config.json) and holds none: train one with --run"
    )


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Each path, without what all have in common."""
    if len(paths) == 1:
        return [paths[0].name]
    common = pathlib.Path(os.path.commonpath([path.parent for path in paths]))
    return [str(path.relative_to(common)) for path in paths]


def _read(name: str, folder: RunFolder) -> Run:
    saved = folder.saved_config() or {}
    try:
        experiment, unread = from_dict(Experiment, saved), ""
    except UserError as error:
        experiment, unread = None, str(error)
    log, history = read_log(folder.metrics), read_history(folder.history)
    config, baselines = flatten(saved), _baselines(folder)
    return Run(name, config, log.rows, baselines, experiment, unread, log.told(), history)


def _baselines(folder: RunFolder) -> dict[str, dict[str, float]]:
    try:
        return read_baselines(folder)
    except UserError:
        return {}  # of a run that is being begun
