"""A whole training run in one call: what the command `train`, studies and notebooks do."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from gam_jax.data.base import Dataset
from gam_jax.params import count_params
from gam_jax.training.beginning import LATEST, LATEST_GOOD, check_which
from gam_jax.training.checks import check_arrays, check_batch, check_fits
from gam_jax.training.experiment import Experiment, check_change
from gam_jax.training.folder import RunFolder
from gam_jax.training.heartbeat import Heartbeat
from gam_jax.training.lock import run_lock
from gam_jax.training.loop import Beginning, Outcome, train
from gam_jax.training.profile import Span
from gam_jax.training.progress import Progress
from gam_jax.training.warm_start import Origin
from sharding import machine, processes
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.paths import local_path
from sharding.whole_file import write_atomically

Baselines = dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a call of `fit` leaves.

    Attributes:
      folder: the run.
      experiment: with the model fitted to the data.
      outcome: how it ended.
      baselines: what the model had to beat, by name; empty if nothing is known.
    """

    folder: RunFolder
    experiment: Experiment
    outcome: Outcome
    baselines: Baselines


def fit(
    experiment: Experiment,
    data: Dataset | None = None,
    *,
    run: str | os.PathLike[str],
    layout: Layout | None = None,
    resume: bool = False,
    beginning: Beginning | None = None,
    progress: Progress | None = None,
    heartbeat: Heartbeat | None = None,
    profile: Span | None = None,
) -> Fitted:
    """Trains a model on data in a run folder, from its start or from where it stopped.

    data = arrays({"x": x, "y": y}, {"x": x_test, "y": y_test})
    fit(Experiment(MyModel(), data.config), data, run="runs/mine")

    Args:
      experiment: model, data, optimizer and so on.
      data: opened already, as what `arrays` gives; None opens what the experiment names.
      run: the folder.
      layout: the mesh; one device if None.
      resume: goes on with the run that the folder holds; a new one where it holds none, or a
        configuration that never ran.
      beginning: what a new run takes from another; which checkpoint an old one goes on from, and
        what may change in it.
      progress: what a person sees; None says it on standard error.
      heartbeat: for a launcher that watches.
      profile: steps to trace into the folder's `profile/`.

    Raises:
      UserError: anything that a person can mend: data, mesh, folder, or a loss that is no number.
    """
    if data is not None:
        experiment = dataclasses.replace(experiment, data=data.config)
    layout = Layout(make_mesh(), experiment.parallel) if layout is None else layout
    progress = Progress(processes.is_first()) if progress is None else progress
    beginning = Beginning() if beginning is None else beginning
    folder = RunFolder(local_path(run))
    resumed = resume and folder.ran()
    check_beginning(experiment, folder, beginning, resume, resumed)
    check_batch(experiment, layout)
    if profile is not None:
        profile.check(0, experiment.train.last_step, experiment.train.local.every)
    with run_lock(folder.path, progress.say):
        for line in machine.told_of(layout.mesh.size):
            progress.say(line)
        if warning := experiment.train.local.warning():
            progress.say(warning)
        if not resumed:
            _begins_anew(folder, progress)
        if data is None:
            progress.say(f"reading {experiment.data.name}")
        origin = beginning.source
        files = kept_files(experiment, folder, resumed, origin)
        experiment, data = opened(experiment, data, files)
        _check(experiment, data, layout)
        if origin is not None:
            origin.plan(experiment.model.stored_table())
        if resumed:
            folder.check_same(experiment, beginning.change)
        elif processes.is_first():
            folder.start(experiment, data.files, {} if origin is None else origin.source)
        processes.barrier("run folder")
        baselines = data.baselines()
        if processes.is_first() and baselines and not (resumed and folder.baselines.exists()):
            write_atomically(folder.baselines, json.dumps(baselines, indent=2) + "\n")
        progress.say(_described(experiment, data, folder, layout))
        outcome = train(experiment, data, folder, layout, progress, heartbeat, beginning, profile)
    return Fitted(folder, experiment, outcome, baselines)


def check_beginning(
    experiment: Experiment, folder: RunFolder, beginning: Beginning, resume: bool, resumed: bool
) -> None:
    """Refuses what cannot be begun so, before anything is read or written.

    Args:
      experiment: of the run, its model not yet fitted to the data.
      folder: of the run.
      beginning: what is asked for.
      resume: whether the run may go on.
      resumed: whether there is one that does.

    Raises:
      UserError: a folder that is taken, a checkpoint that is not there, a field that may not
        change, or a change of a run that does not go on.
    """
    if not resumed:
        folder.check_new()
    if not resume and (beginning.change or beginning.skip):
        raise UserError("--change and --skip are for a run that goes on: add --resume")
    check_change(beginning.change, experiment)
    if resumed:
        check_which(folder, beginning.which)
    elif beginning.which not in (LATEST, LATEST_GOOD, "0"):
        raise UserError(f"--resume={beginning.which}: {folder.path} has no run to go back in")


def _begins_anew(folder: RunFolder, progress: Progress) -> None:
    """Looks again, now that nobody else can begin a run there."""
    problem = ""
    if processes.is_first():
        try:
            folder.check_new()
        except UserError as error:
            problem = str(error)
    if problem := processes.first_said(problem):
        raise UserError(problem)
    if folder.config.exists():
        progress.say(f"{folder.path} holds a configuration that never ran: begun anew")


def kept_files(
    experiment: Experiment, folder: RunFolder, resumed: bool, origin: Origin | None
) -> Mapping[str, str] | None:
    """The files of its data that a run has: its own, or those that it has from where it starts.

    Args:
      experiment: what is run.
      folder: of the run.
      resumed: whether it goes on.
      origin: whose parameters a new one starts from.
    """
    if resumed:
        return folder.kept(experiment.data)
    return None if origin is None else origin.files(experiment.data)


def opened(
    experiment: Experiment, data: Dataset | None, files: Mapping[str, str] | None
) -> tuple[Experiment, Dataset]:
    """The experiment with its model fitted to the data, and the data as long as it asks for.

    Args:
      experiment: what is run.
      data: opened already, or None.
      files: of the data, see `kept_files`.

    Raises:
      UserError: data that cannot be opened, or do not suit the model.
    """
    if data is None:
        data = experiment.data.open(files)
    data = data.first(experiment.train.tokens, experiment.train.validation_tokens)
    model = experiment.model.fitted(data)
    return dataclasses.replace(experiment, model=model, data=data.config), data


def _check(experiment: Experiment, data: Dataset, layout: Layout) -> None:
    settings = experiment.train
    rows = settings.batch // settings.accumulate
    check_arrays(experiment.model, data.batch(rows), data.config.name)
    check_fits(experiment, layout, data.batch(layout.without_workers.row_parts))


def _described(experiment: Experiment, data: Dataset, folder: RunFolder, layout: Layout) -> str:
    count = count_params(experiment.model.table())
    mesh = f"{layout.shown} ({experiment.parallel.preset}), " if layout.mesh.size > 1 else ""
    return (
        f"{mesh}{count:,} parameters, {data.described()}, {experiment.train.last_step:,} steps; "
        f"run folder {folder.path}"
    )


def summary(fitted: Fitted) -> dict[str, Any]:
    """What a finished run says as JSON."""
    outcome = fitted.outcome
    found: dict[str, Any] = {
        "run": str(fitted.folder.path),
        "step": outcome.step,
        "interrupted": outcome.interrupted,
        "validation": None if outcome.last is None else outcome.last.to_json(),
        "baselines": fitted.baselines,
    }
    unit = "units" if outcome.last is None else outcome.last.unit
    return {**found, f"{unit}_per_second": round(outcome.per_second, 1)}
