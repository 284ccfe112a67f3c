"""Where a run begins: at its first step, or at a checkpoint, and with what has changed since."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gam_jax.data.base import Dataset
from gam_jax.master import first_values
from gam_jax.optimizer import learning_rate_schedule
from gam_jax.params import Params
from gam_jax.training.experiment import Changes, Experiment, run_optimizer
from gam_jax.training.folder import (
    RunFolder,
    abstract_on_mesh,
    check_data,
    compiler,
    frozen_names,
    versions,
)
from gam_jax.training.history import Began, note, read_history, skipped_from
from gam_jax.training.progress import Progress
from gam_jax.training.state import TrainState, begun_from, init_state
from gam_jax.training.warm_start import Origin
from sharding import processes
from sharding.checkpoint import Checkpoints
from sharding.checkpoint.keep import SOURCE
from sharding.checkpoint.saved import Saved
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.whole_file import free_name

LATEST, LATEST_GOOD, BEST = "latest", "latest-good", "best"


@dataclasses.dataclass(frozen=True)
class Beginning:
    """Where a run begins.

    Attributes:
      which: the checkpoint that a run goes on from: "latest"; "latest-good", the newest that is
        whole and not suspect; "best"; a step; or "0", the beginning.
      source: whose parameters to start from where the folder has no checkpoint.
      params: makes the parameters to start from, whole arrays; None for new ones, or `source`'s.
      change: fields that may be others than they were, see `experiment.CHANGEABLE`.
      skip: batches to pass over; None for as many as the last start from that checkpoint.
    """

    which: str = LATEST
    source: Origin | None = None
    params: Callable[[], Params] | None = None
    change: tuple[str, ...] = ()
    skip: int | None = None


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
      step: the checkpoint; None for the beginning.
      state: parameters and so on.
      position: global batches that the data stand at.
      norms: gradient norms of the steps before.
      aside: where rows of later steps go, since other steps will take their place; None where the
        same steps are done again.
    """

    step: int | None
    state: TrainState
    position: int
    norms: Sequence[float]
    aside: pathlib.Path | None


def check_which(folder: RunFolder, which: str) -> None:
    """Refuses a checkpoint that is not there.

    Raises:
      UserError: it names those that are.
    """
    if which in (LATEST, LATEST_GOOD):
        return
    checkpoints = Checkpoints(folder.checkpoints, read_only=True)
    if which == "0" and 0 not in checkpoints.steps():
        if folder.init.exists():
            raise UserError(
                f"--resume=0: {folder.path} began from another run, and its checkpoint 0 is gone: "
                f"begin another with --run and --init"
            )
        return
    checkpoints.choose(which)


def begin(
    experiment: Experiment,
    data: Dataset,
    folder: RunFolder,
    layout: Layout,
    checkpoints: Checkpoints,
    beginning: Beginning,
    progress: Progress,
) -> Start:
    """The state that a run begins with; what it leaves behind is put aside and noted.

    Raises:
      UserError: a checkpoint that is not there, is damaged or does not fit.
    """
    step, damaged = _choose(checkpoints, folder, beginning.which, progress)
    norms: Sequence[float] = ()
    if step is None:
        state, position, rows = _new(experiment, layout, folder, beginning, progress), 0, 0
        _leave_frozen(experiment, checkpoints, beginning.source, progress)
    else:
        if step > experiment.train.steps:
            raise UserError(
                f"train.steps={experiment.train.steps} lies before checkpoint {step}: raise it, "
                f"or go back with --resume=STEP"
            )
        checkpoints.check(step)
        extra = checkpoints.extra(step)
        check_data(extra, data, f"checkpoint {step}")
        state = checkpoints.restore(step, abstract_on_mesh(experiment, layout))
        if frozen_names(experiment) and any(
            x.place for x in checkpoints.manifest(step).arrays.values()
        ):
            checkpoints.elsewhere = checkpoints.standing(step)
        try:
            position, rows = _position(extra, experiment.train.batch)
            norms = [float(norm) for norm in extra.get("gradient_norms", ())]
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(
                f"checkpoint {step} in {checkpoints.folder} does not say where its data stood: go "
                f"back with --resume=STEP"
            ) from error
    skip = beginning.skip
    if skip is None:
        skip = skipped_from(read_history(folder.history), step or 0)
    changes = folder.check_same(experiment, beginning.change)
    aside = checkpoints.set_aside(step, damaged)
    parted = bool(changes or beginning.skip or aside)
    parted = parted or beginning.which not in (LATEST, LATEST_GOOD)
    began = Began(
        step=step or 0,
        which=beginning.which,
        position=position + skip,
        changed={name: list(pair) for name, pair in changes.items()},
        skipped=skip,
        rows=rows,
        aside=aside,
        versions=versions(),
        compiler=compiler(),
        mesh=layout.shown.removeprefix("mesh "),
        processes=processes.count(),
    )
    _note(began, changes, experiment, folder, progress)
    moved = free_name(folder.metrics.with_name(f"{folder.metrics.name}.aside"))
    return Start(step, state, position + skip, norms, moved if parted else None)


def _note(
    began: Began,
    changes: Changes,
    experiment: Experiment,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Tells of a start, and writes it down."""
    if told := began.told():
        progress.say(f"from step {began.step}: {'; '.join(told)}")
    if {name for name in changes if name.startswith("optimizer.")} or "train.steps" in changes:
        old = folder.experiment()
        rates = [
            np.asarray(learning_rate_schedule(one.optimizer, one.train.steps)(began.step))
            for one in (old, experiment)
        ]
        progress.say(f"learning rate of step {began.step}: {rates[0]:.3g} -> {rates[1]:.3g}")
    problem = ""
    if processes.is_first():
        try:
            note(folder.history, began)
            if changes:
                folder.change(changes)
        except (OSError, UserError) as error:
            problem = f"cannot write the run folder {folder.path}: {error}"
    if problem := processes.first_said(problem):
        raise UserError(problem)


def _choose(
    checkpoints: Checkpoints, folder: RunFolder, which: str, progress: Progress
) -> tuple[int | None, set[int]]:
    """The step to go on from, None for the beginning; and those after it that are damaged."""
    steps = checkpoints.steps()
    if which == LATEST:
        step = max(steps, default=None)
        if step is not None and (why := checkpoints.suspect(step)):
            progress.say(
                f"checkpoint {step} is suspect ({why}): --resume=latest-good begins before it"
            )
        return step, set()
    if which == LATEST_GOOD:
        return _latest_good(checkpoints, progress)
    check_which(folder, which)
    if which == "0" and 0 not in steps:
        return None, set()
    step = checkpoints.choose(which)
    if which == BEST and step not in checkpoints.losses():
        progress.say(f"no checkpoint has a validation loss: {step} is the newest")
    return step, set()


def _latest_good(checkpoints: Checkpoints, progress: Progress) -> tuple[int | None, set[int]]:
    steps = checkpoints.steps()
    step, damaged = checkpoints.latest_good()
    if step is None and steps:
        what = (
            f"the oldest: {damaged[-1]}"
            if damaged
            else f"--resume=STEP takes one of {steps}, --resume=0 begins again"
        )
        none = "whole" if damaged else "free of suspicion"
        raise UserError(f"no checkpoint in {checkpoints.folder} is {none}; {what}")
    for error in damaged:
        progress.say(f"{error.where} is damaged ({error.reason}) and set aside")
    later = [found for found in steps if step is not None and found > step]
    for found in later:
        if why := checkpoints.suspect(found):
            progress.say(f"checkpoint {found} is suspect ({why}) and set aside")
    if later:
        progress.say(f"going on from checkpoint {step}")
    return step, {found for found in later if not checkpoints.suspect(found)}


def _new(
    experiment: Experiment,
    layout: Layout,
    folder: RunFolder,
    beginning: Beginning,
    progress: Progress,
) -> TrainState:
    """The state before the first step."""
    model = experiment.model
    optimizer = run_optimizer(experiment)
    state = init_state(model, optimizer, layout, experiment.train.seed)
    if beginning.params is not None:
        return begun_from(state, beginning.params())
    if beginning.source is None:
        if folder.init.exists():
            raise UserError(
                f"{folder.path} began from another's parameters and has no checkpoint yet: add the "
                f"--init that it began with"
            )
        return state
    fresh = first_values(state.params, state.opt_state)
    wide, report = beginning.source.start(model.stored_table(), fresh)
    for line in report.lines():
        progress.say(line)
    if processes.is_first():
        report.write(folder.init)
    return begun_from(state, wide)


def _leave_frozen(
    experiment: Experiment, checkpoints: Checkpoints, source: Origin | None, progress: Progress
) -> None:
    """Notes where frozen parameters stand already, so that they need not be saved again."""
    frozen = frozen_names(experiment)
    if source is None or not frozen or checkpoints.config.frozen != SOURCE:
        return
    found = source.standing()
    checkpoints.elsewhere = {name: found[name] for name in frozen if name in found}
    places = {(x.place.folder, x.place.step) for x in checkpoints.elsewhere.values() if x.place}
    for where, step in sorted(places):
        kept = processes.is_first() and Saved(pathlib.Path(where)).pin(step)
        stays = "" if kept else ", and must stay there"
        progress.say(
            f"frozen parameters are read from checkpoint {step} in {where}{stays}; "
            f"--config.checkpoint.frozen=once keeps them in this run"
        )


def _position(extra: Mapping[str, Any], batch: int) -> tuple[int, int]:
    """Where the data stood, in batches of this size, and rows left out to begin at a whole one."""
    was = extra.get("config", {}).get("train", {}).get("batch", batch)
    for number, least in ((extra["position"], 0), (was, 1)):
        if type(number) is not int or number < least:
            raise ValueError(f"{number} is no count")
    rows = extra["position"] * was
    position = -(-rows // batch)
    return position, position * batch - rows
