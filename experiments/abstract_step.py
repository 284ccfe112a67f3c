"""A training step, and shapes in place of what it is given."""

from __future__ import annotations

from typing import Any

import jax

from gam_jax.models.base import on_stages
from gam_jax.optimizer import make_optimizer
from gam_jax.training.experiment import Experiment
from gam_jax.training.step import abstract_state, make_train_step
from sharding.layout import Layout


def lowered(experiment: Experiment, layout: Layout) -> tuple[Any, Any, Any]:
    """The training step and abstract arguments for it."""
    model, settings = experiment.model, experiment.train
    optimizer = make_optimizer(experiment.optimizer, settings.steps, model.table())
    step = make_train_step(model, optimizer, layout, settings.accumulate)
    state = abstract_state(on_stages(model, layout)[0], optimizer)
    return step, state, abstract_batch(experiment)


def abstract_batch(experiment: Experiment) -> dict[str, Any]:
    """Shapes of a training batch: [rows, ...], or [accumulate, rows / accumulate, ...]."""
    settings = experiment.train
    parts = (settings.accumulate,) if settings.accumulate > 1 else ()
    rows = experiment.data.batch(settings.batch // settings.accumulate)
    return {name: jax.ShapeDtypeStruct((*parts, *x.shape), x.dtype) for name, x in rows.items()}
