"""An experiment as the planner takes it."""

from __future__ import annotations

from typing import Any

import jax

from gam_jax.models.base import Model
from gam_jax.params import abstract_params
from gam_jax.planning import Profile
from gam_jax.planning.traces import Program, Run
from gam_jax.training.experiment import Experiment
from gam_jax.training.step import make_gradients
from sharding.layout import Layout

ON_CHIP = "memory.chip.capacity"
"""The figure of memory that compilers place arrays in, besides the device's own."""


def run_of(experiment: Experiment, device: Profile | None = None) -> Run:
    """What is planned, of an experiment whose model is fitted to its data.

    Args:
      experiment: the run.
      device: whose programs are priced; JAX's default if None.
    """
    window = getattr(experiment.data, "window", 0)
    batch = experiment.train.batch
    program = _program(experiment)
    backend, chip = (device.backend, device.known(ON_CHIP, 0.0)) if device else (None, 0.0)
    return Run(experiment.model, experiment.optimizer, batch, window, program, backend, chip)


def _program(experiment: Experiment) -> Program:
    def program(model: Model, layout: Layout, rows: int) -> Any:
        batch = dict(experiment.data.batch(rows * layout.row_parts))
        params = abstract_params(model.stored_table())
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.make_jaxpr(make_gradients(model, layout))(params, batch, key).jaxpr

    return program
