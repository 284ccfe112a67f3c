"""Trains arms from several seeds, each kept in a folder of its own, and times their steps."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmark.timing import Quantity, medians
from experiments.compare.trial import run_trial
from experiments.papers.gam.arms import ARMS
from experiments.papers.gam.scale import Scale
from experiments.train import baselines_of, fit_to_data
from gam_jax.data import TextDataset, load
from gam_jax.optimizer import make_optimizer
from gam_jax.training.checks import check_fits
from gam_jax.training.experiment import Experiment
from gam_jax.training.step import init_state, make_train_step
from sharding.layout import Layout


@dataclasses.dataclass(frozen=True)
class Found:
    """What the trials of an arm found.

    Attributes:
      losses: validation loss after the last step, nats per token, a seed each.
      parameters: of the model.
      steps: updates of a trial.
      epoch_steps: updates of an epoch.
      step_seconds: of a step, arms timed in turn; None if not timed.
    """

    losses: tuple[float, ...]
    parameters: int
    steps: int
    epoch_steps: int
    step_seconds: Quantity | None = None

    @property
    def loss(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.losses)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds, of the sample; not a number for one seed."""
        return statistics.stdev(self.losses) if len(self.losses) > 1 else math.nan

    @property
    def epoch_seconds(self) -> float:
        """Of training alone, as the paper counts it; not a number if not timed."""
        return self.epoch_steps * self.step_seconds.median if self.step_seconds else math.nan


@dataclasses.dataclass(frozen=True)
class Trials:
    """All arms on one data set.

    Attributes:
      data: its name.
      baselines: of the same validation text, see `gam_jax.data.baselines`.
      found: by arm.
    """

    data: str
    baselines: Mapping[str, Mapping[str, float]]
    found: Mapping[str, Found]

    def to_json(self) -> dict[str, Any]:
        """For --json and the file of figures."""
        found = {
            name: {**dataclasses.asdict(one), "loss": one.loss, "perplexity": math.exp(one.loss)}
            for name, one in self.found.items()
        }
        return {"data": self.data, "baselines": self.baselines, "arms": found}


def run_trials(
    scale: Scale,
    text: TextDataset,
    names: Sequence[str],
    seeds: Sequence[int],
    out: pathlib.Path,
    layout: Layout,
    timed: int,
) -> Trials:
    """Trains what is not trained yet; a trial that was stopped goes on.

    Args:
      scale: how large.
      text: what all are trained on, see `open_text`.
      names: of the arms.
      seeds: of parameters, data order and dropout.
      out: where the folders of the trials are.
      layout: the mesh.
      timed: steps of each arm that are timed, in turn; 0 for none.

    Raises:
      UserError: a trial was interrupted; a folder holds something else.
    """
    wanted, cut = {}, text
    for name in names:
        one = scale.protocol(text.config.name, text.config.dir)
        one = scale.fitted(ARMS[name].change(one, scale), text)
        wanted[name], cut = fit_to_data(one, text)
        check_fits(wanted[name], layout)
    losses: dict[str, list[float]] = {name: [] for name in names}
    rows: dict[str, Any] = {}
    for seed in seeds:
        for name, one in wanted.items():
            one = dataclasses.replace(one, train=dataclasses.replace(one.train, seed=seed))
            folder = out / slug(text.config.name) / f"{name}-{seed}"
            rows[name] = run_trial(one, cut, folder, layout)
            losses[name].append(rows[name]["loss"])
    times = step_times(wanted, layout, timed) if timed else {}
    found = {
        name: Found(
            losses=tuple(losses[name]),
            parameters=rows[name]["parameters"],
            steps=one.train.steps,
            epoch_steps=one.train.steps // scale.epochs,
            step_seconds=times.get(name),
        )
        for name, one in wanted.items()
    }
    return Trials(text.config.name, baselines_of(cut), found)


def open_text(scale: Scale, name: str, folder: str) -> TextDataset:
    """The tokens that all arms see.

    Raises:
      UserError: no such data, or it cannot be downloaded here.
    """
    return load(scale.protocol(name, folder).data)


def step_times(
    wanted: Mapping[str, Experiment], layout: Layout, repeats: int
) -> dict[str, Quantity]:
    """Seconds of a training step of each experiment; they take turns, so all see one machine."""
    calls = {}
    for name, one in wanted.items():
        optimizer = make_optimizer(one.optimizer, one.train.steps, one.model.table())
        step = make_train_step(one.model, optimizer, layout)
        holder = [init_state(one.model, optimizer, layout, seed=0)]
        shape = one.train.batch, one.data.window + 1
        vocab = one.model.vocab or 1
        tokens = np.random.default_rng(0).integers(0, vocab, shape).astype(np.int32)
        batch = {
            "inputs": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "weights": np.ones((shape[0], shape[1] - 1), np.float32),
        }

        def call(step: Any = step, holder: list[Any] = holder, batch: Any = batch) -> Any:
            holder[0], metrics = step(holder[0], batch)
            return metrics["loss"]

        calls[name] = call
    return medians(calls, repeats)


def slug(name: str) -> str:
    """A name of a folder for a data set."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[-60:] or "text"
