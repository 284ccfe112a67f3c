"""Runs the arms of a study from several seeds: train, compute, time; one way for all papers."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmark.timing import samples
from experiments.study.declare import Arm, Setting, Study
from experiments.study.found import ArmFound, Found, stamped
from experiments.study.trial import Opened, run_trial, shortened
from gam_jax.config import unknown
from gam_jax.data import DATA, Data
from gam_jax.training.experiment import Experiment
from gam_jax.training.progress import Progress
from sharding.errors import UserError
from sharding.layout import Layout


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of a study.

    Attributes:
      arms: their names; those that they begin from are run as well.
      seeds: of parameters and data order; a run for each.
      setting: scale, data and steps.
      out: folder of the runs.
      repeats: turns of what is timed; 0 times nothing.
      command: that prints the figures again.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    setting: Setting
    out: pathlib.Path
    repeats: int = 5
    command: str = ""


def chosen_arms(study: Study, names: Sequence[str], group: str = "") -> tuple[str, ...]:
    """The arms that are named, or those of a group, or the study's own.

    Raises:
      UserError: an unknown name, with the nearest.
    """
    if group:
        if group not in study.groups:
            raise UserError(f"--group: {unknown(group, study.groups, 'group')}")
        return tuple(names) or study.groups[group]
    for name in names:
        if name not in study.arms:
            raise UserError(f"arms of {study.name}: {unknown(name, study.arms, 'arm')}")
    return tuple(dict.fromkeys(names)) or study.default_arms


def run_study(study: Study, request: Request, layout: Layout, progress: Progress) -> Found:
    """Runs what is not run yet; a run that was stopped goes on.

    Args:
      study: what is asked.
      request: which arms, seeds and scale.
      layout: the mesh that runs are trained on.
      progress: what a person sees.

    Raises:
      UserError: an unknown scale or arm, data that cannot be read, a run that was interrupted.
    """
    setting = request.setting
    if setting.scale not in study.scales:
        raise UserError(f"--scale: {unknown(setting.scale, study.scales, 'scale')}")
    names = with_sources(study, chosen_arms(study, request.arms))
    for name in names:
        if study.arms[name].reads and not setting.data:
            raise UserError(f"arm {name} reads {study.arms[name].reads}: give it, --data=FILE")
    trained = [name for name in names if study.arms[name].experiment is not None]
    experiments = {name: experiment_of(study.arms[name], setting) for name in trained}
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    opened: Opened = {}
    for seed in request.seeds:
        for name in names:
            arm = study.arms[name]
            if arm.exact and seed != request.seeds[0]:
                continue
            if name in experiments:
                one = with_seed(experiments[name], seed)
                root = request.out / setting.scale
                sources = {} if arm.begins is None else _folders(root, arm.begins.arms, seed)
                wanted = tuple(study.measures)
                folder = root / f"{name}-{seed}"
                values = run_trial(
                    arm, one, opened, folder, layout, sources, wanted, progress, setting.steps
                )
            else:
                values = {} if arm.numbers is None else arm.numbers(setting, seed)
            for measure, value in values.items():
                figures[name].setdefault(measure, []).append(float(value))
    times = _times(study, names, request)
    arms = {
        name: _arm_found(study.arms[name], figures[name], times.get(name, {}), request)
        for name in names
    }
    return Found(setting.scale, arms, _baselines(experiments, opened))


def _arm_found(
    arm: Arm,
    figures: Mapping[str, list[float]],
    times: Mapping[str, list[float]],
    request: Request,
) -> ArmFound:
    kind = "exact" if arm.exact or not figures else "seeds"
    seeds = () if kind == "exact" else request.seeds
    return stamped({**figures, **times}, kind, seeds, request.command, tuple(times))


def experiment_of(arm: Arm, setting: Setting) -> Experiment:
    """An arm's experiment with what the setting changes."""
    assert arm.experiment is not None
    one = arm.experiment(setting)
    one = dataclasses.replace(one, data=_data_of(one.data, setting))
    if setting.learning_rate:
        rate = {"learning_rate": setting.learning_rate}
        one = dataclasses.replace(one, optimizer=dataclasses.replace(one.optimizer, **rate))
    return shortened(one, setting.steps)


def _data_of(data: Data, setting: Setting) -> Data:
    """The data of an arm, or those of the setting where an arm can read them."""
    changes = {"name": setting.data, "dir": setting.data_dir}
    changes = {name: value for name, value in changes.items() if value}
    values = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    if "dir" in changes and "dir" not in values:
        raise UserError(f"--data_dir: data.name={data.name} is kept nowhere: leave it out")
    kind = DATA.get(setting.data.partition(":")[0], type(data))
    if not issubclass(kind, type(data)):
        raise UserError(f"--data={setting.data}: the arms read {data.name}: leave it out")
    return kind(**{**values, **changes})


def with_seed(experiment: Experiment, seed: int) -> Experiment:
    """The experiment from another seed."""
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, seed=seed))


def with_sources(study: Study, names: Sequence[str]) -> tuple[str, ...]:
    """The arms, each after those that it begins from."""
    found: dict[str, None] = {}

    def add(name: str) -> None:
        begins = study.arms[name].begins
        for source in () if begins is None else begins.arms:
            add(source)
        found[name] = None

    for name in names:
        add(name)
    return tuple(found)


def _folders(root: pathlib.Path, arms: Sequence[str], seed: int) -> dict[str, pathlib.Path]:
    return {name: root / f"{name}-{seed}" for name in arms}


def _times(
    study: Study, names: Sequence[str], request: Request
) -> dict[str, dict[str, list[float]]]:
    """Arm -> measure -> seconds of each turn; all calls take turns, so they see one machine."""
    calls: dict[tuple[str, str], Any] = {}
    for name in names if request.repeats else ():
        timed = study.arms[name].timed
        if timed is not None:
            calls |= {(name, m): call for m, call in timed(request.setting).items()}
    found: dict[str, dict[str, list[float]]] = {}
    for (name, measure), seconds in samples(calls, request.repeats).items():
        found.setdefault(name, {})[measure] = seconds
    return found


def _baselines(
    experiments: Mapping[str, Experiment], opened: Opened
) -> dict[str, dict[str, float]]:
    """What the arms had to beat, where all of them were scored on the same data."""
    cuts = {
        (one.data, one.train.tokens, one.train.validation_tokens) for one in experiments.values()
    }
    if len(cuts) != 1:
        return {}
    data, tokens, validation_tokens = cuts.pop()
    return opened[data].first(tokens, validation_tokens).baselines()
