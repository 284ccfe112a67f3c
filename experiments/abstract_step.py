"""A training step, and shapes in place of what it is given."""

from __future__ import annotations

from typing import Any

import jax

from gam_jax.models.base import on_stages
from gam_jax.training.experiment import Experiment, run_optimizer
from gam_jax.training.rounds import make_step
from gam_jax.training.state import abstract_state
from sharding.layout import Layout


def lowered(experiment: Experiment, layout: Layout) -> tuple[Any, Any, Any]:
    """The training step and abstract arguments for it."""
    model, settings = experiment.model, experiment.train
    optimizer = run_optimizer(experiment)
    step = make_step(model, optimizer, layout, settings.accumulate)
    state = abstract_state(on_stages(model, layout)[0], optimizer)
    return step, state, abstract_batch(experiment)


def abstract_batch(experiment: Experiment) -> dict[str, Any]:
    """Shapes of a training batch: [rows, ...], or [accumulate, rows / accumulate, ...].

    Of a round where there are workers, see `rounds.round_specs`.
    """
    settings = experiment.train
    parts, local = (settings.accumulate,) if settings.accumulate > 1 else (), settings.local
    if local.on:
        parts = (local.every, local.workers, *parts)
    rows = experiment.data.batch(settings.batch // settings.accumulate // local.workers)
    return {name: jax.ShapeDtypeStruct((*parts, *x.shape), x.dtype) for name, x in rows.items()}
