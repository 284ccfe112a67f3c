"""The gates before a candidate is trained: it builds, fits the mesh, is not too dear, is causal."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments.planned import run_of
from experiments.search.causal import SEEN, check_causal, shaken
from experiments.search.rules import Rules, check_limits
from gam_jax.models import LanguageModel
from gam_jax.params import count_params
from gam_jax.planning.work import Candidate, has_plan, own_trace, work_of
from gam_jax.search import Gate, Point
from gam_jax.training.checks import check_batch, check_fits
from gam_jax.training.experiment import Experiment
from sharding.errors import UserError
from sharding.layout import Layout

BUILDS, FITS, COSTS, CAUSAL = "builds", "fits the mesh", "costs", "is causal"
TRAINS, DOUBT = "trains", "doubt"
"""Who can refuse a candidate: four gates before it is trained, and two more."""


def gates(
    built: Callable[[Point], Experiment],
    layout: Layout,
    rules: Rules,
    base: Mapping[str, float],
) -> tuple[Gate, ...]:
    """Those of points, the cheapest first.

    Args:
      built: the experiment of a point, its model fitted to the data; raises a UserError.
      layout: the mesh.
      rules: limits among them.
      base: figures of the base, see `costs`.
    """

    def fits(point: Point) -> None:
        check_mesh(built(point), layout)

    def within(point: Point) -> Mapping[str, float]:
        few = parameters(built(point))
        check_limits(few, base, rules)
        found = few | costs(built(point), layout)
        check_limits(found, base, rules)
        return found

    def causal(point: Point) -> None:
        check_new(built(point))

    def builds(point: Point) -> None:
        built(point)

    asked = {BUILDS: builds, FITS: fits, COSTS: within, CAUSAL: causal}
    return tuple(Gate(name, ask) for name, ask in asked.items())


def check_mesh(experiment: Experiment, layout: Layout) -> None:
    """Refuses what does not fit the mesh, see `gam_jax.training.checks`."""
    layout = dataclasses.replace(layout, parallel=experiment.parallel)
    check_batch(experiment, layout)
    check_fits(experiment, layout)


def parameters(experiment: Experiment) -> dict[str, float]:
    """How many there are."""
    return {"parameters": count_params(experiment.model.table())}


def costs(experiment: Experiment, layout: Layout) -> dict[str, float]:
    """By formula: flops of a token in a training step, and bytes held on each device.

    Empty for a model that `gam_jax.planning` cannot price.
    """
    sizes = dict(layout.mesh.shape)
    parallel, model = experiment.parallel, experiment.model
    candidate = Candidate(
        tuple(sizes.items()),
        parallel.preset,
        experiment.train.accumulate,
        bool(getattr(model, "remat", False)),
        parallel.schedule,
        parallel.turns,
    )
    run = run_of(experiment)
    if not has_plan(model, candidate.layout):
        return {}
    try:
        work = work_of(run, candidate, own_trace(run, candidate))
    except NotImplementedError:  # a layer of one's own, whose messages nobody has told
        return {}
    tokens = experiment.train.batch * max(run.window, 1) / layout.mesh.size
    return {"flops": sum(work.flops.values()) / tokens, "held": work.held}


def check_new(experiment: Experiment) -> None:
    """The causality of a language model with new parameters, see `check_causal`."""
    model = experiment.model
    if isinstance(model, LanguageModel):
        tokens = drawn(model, min(_window(experiment), SEEN))
        key = jax.random.key(experiment.train.seed)
        _said(lambda: check_causal(model, shaken(model, key), tokens))


def check_trained(experiment: Experiment, params: Any) -> None:
    """The causality of a language model with its trained parameters, over a whole row."""
    model = experiment.model
    if isinstance(model, LanguageModel):
        _said(lambda: check_causal(model, params, drawn(model, _window(experiment))))


def _said(check: Callable[[], None]) -> None:
    """A program that cannot be, as one line."""
    try:
        check()
    except UserError:
        raise
    except (ValueError, ArithmeticError, TypeError) as error:
        raise UserError(str(error)) from error


def _window(experiment: Experiment) -> int:
    return max(getattr(experiment.data, "window", SEEN), 2)


@functools.lru_cache
def drawn(model: LanguageModel, tokens: int) -> np.ndarray:
    """Rows of drawn tokens [2, T]."""
    return np.random.default_rng(0).integers(0, model.ids()["inputs"], (2, tokens), np.int32)
