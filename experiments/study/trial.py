"""One arm trained from one seed, as a run folder, and what that folder tells."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.abstract_step import lowered
from experiments.study.declare import Arm, Begins
from gam_jax.data.base import Data, Dataset
from gam_jax.params import Params, count_params
from gam_jax.training.checks import check_batch
from gam_jax.training.experiment import Experiment
from gam_jax.training.fit import fit
from gam_jax.training.folder import RunFolder, load_params
from gam_jax.training.loop import Beginning
from gam_jax.training.metrics import read_metrics
from gam_jax.training.progress import Progress
from gam_jax.training.warm_start import Source
from sharding.degrees import Degrees
from sharding.errors import UserError
from sharding.json_file import read_json
from sharding.layout import Layout
from sharding.whole_file import write_atomically

FOUND = "found.json"
"""In a run folder: what a finished trial found."""
PEAK = "peak_bytes"
"""The measure for which the compiler is asked once more."""

Opened = dict[Data, Dataset]
"""Data that have been opened: all arms that read the same share it."""


def run_trial(
    arm: Arm,
    experiment: Experiment,
    opened: Opened,
    folder: pathlib.Path,
    layout: Layout,
    sources: Mapping[str, pathlib.Path],
    wanted: Sequence[str],
    progress: Progress,
    steps: int = 0,
) -> dict[str, float]:
    """Trains in a run folder, or goes on in it, and reads what was found.

    Args:
      arm: whose trial it is.
      experiment: of the run, with its seed.
      opened: data; what is missing is opened and added.
      folder: of the run.
      layout: the mesh.
      sources: run folders that the arm may begin from, by arm.
      wanted: measures that somebody asks for.
      progress: what a person sees.
      steps: that a person asks for, whatever `Arm.fitted` says; 0 for none.

    Returns:
      The scores of the last validation; steps; speed, median units a second; parameters;
      state_bytes of one sequence where the model has a recurrent state or a KV cache; peak_bytes
      of a training step on each device, if wanted; and what `Arm.also` adds. They are kept in the
      folder, so a finished trial is only read.

    Raises:
      UserError: the folder holds another run, or the run was interrupted.
    """
    if experiment.data not in opened:
        progress.say(f"reading {experiment.data.name}")
        opened[experiment.data] = experiment.data.open()
    data = opened[experiment.data]
    if arm.fitted is not None:
        experiment = shortened(arm.fitted(experiment, data), steps)
    run = RunFolder(folder)
    if (folder / FOUND).exists():
        cut = data.first(experiment.train.tokens, experiment.train.validation_tokens)
        run.check_same(dataclasses.replace(experiment, model=experiment.model.fitted(cut)))
        return _found(folder / FOUND)
    layout = dataclasses.replace(layout, parallel=experiment.parallel)
    if experiment.parallel.bits and layout.degrees == Degrees():
        raise UserError(
            f"{folder.name} rounds what devices send, and {layout.shown} sends nothing: give "
            f"--emulate=8 --mesh=data=2x4"
        )
    check_batch(experiment, layout)
    beginning = Beginning() if arm.begins is None else _beginning(arm.begins, sources, layout)
    progress.say(f"{folder.name}:")
    fitted = fit(
        experiment,
        data,
        run=folder,
        layout=layout,
        resume=True,
        beginning=beginning(experiment) if callable(beginning) else beginning,
        progress=progress,
    )
    outcome, experiment = fitted.outcome, fitted.experiment
    if outcome.interrupted or outcome.last is None:
        raise UserError(f"stopped at step {outcome.step} of {folder}: the same command goes on")
    rows = [row for row in read_metrics(run.metrics) if row["split"] == "train"]
    speeds = [s for row in rows if (s := row.get(f"{data.unit}_per_second"))]
    state_bytes = experiment.model.carry_bytes(1)
    found: dict[str, float] = {
        **outcome.last.values,
        "steps": outcome.step,
        "speed": statistics.median(speeds) if speeds else 0.0,
        "parameters": count_params(experiment.model.table()),
        **({} if state_bytes is None else {"state_bytes": state_bytes}),
        **({PEAK: peak_bytes(experiment, layout)} if PEAK in wanted else {}),
        **({} if arm.also is None else arm.also(run, experiment)),
    }
    write_atomically(folder / FOUND, json.dumps(found) + "\n")
    return found


def _found(path: pathlib.Path) -> dict[str, float]:
    """What a finished trial has kept."""
    found = read_json(path, finite=False)
    for name, value in found.items():
        if type(value) not in (int, float):
            raise UserError(f"{path}: {name[:60]!r} is no number: restore or remove the file")
    return found


def _beginning(
    begins: Begins, sources: Mapping[str, pathlib.Path], layout: Layout
) -> Beginning | Callable[[Experiment], Beginning]:
    """What a run begins with: taken over by name, or made of other arms' parameters."""
    runs = [RunFolder(sources[name]) for name in begins.arms]
    make = begins.make
    if make is None:
        return Beginning(source=Source(runs[0]))

    def beginning(experiment: Experiment) -> Beginning:
        def params() -> Params:
            own = [run.experiment() for run in runs]
            loaded = [load_params(run, one, layout)[1] for run, one in zip(runs, own, strict=True)]
            return make(experiment, own, loaded, experiment.train.seed)

        return Beginning(params=params)

    return beginning


def shortened(experiment: Experiment, steps: int) -> Experiment:
    """The experiment with so many steps, and a warm-up and logging that suit them; same for 0."""
    if not steps:
        return experiment
    settings, optimizer = experiment.train, experiment.optimizer
    train = dataclasses.replace(
        settings,
        steps=steps,
        log_every=min(settings.log_every, max(1, steps // 4)),
        validate_every=min(settings.validate_every, steps),
    )
    warmup = min(optimizer.warmup_steps(settings.steps), steps // 10)
    optimizer = dataclasses.replace(optimizer, warmup=warmup)
    return dataclasses.replace(experiment, train=train, optimizer=optimizer)


def peak_bytes(experiment: Experiment, layout: Layout) -> int:
    """What a training step needs on a device: its arguments and temporaries, by the compiler."""
    step, *given = lowered(experiment, layout)
    memory: Any = step.lower(*given).compile().memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes
