"""An experiment as the planner takes it."""

from __future__ import annotations

from typing import Any

import jax

from gam_jax.bilevel import of_logits
from gam_jax.models.base import Model
from gam_jax.params import Params, abstract_params
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
    own = experiment.model, experiment.optimizer, batch, window, program, backend, chip
    return Run(*own, experiment.train.bilevel)


def _program(experiment: Experiment) -> Program:
    def program(model: Model, layout: Layout, rows: int) -> Any:
        batch = dict(experiment.data.batch(rows * layout.row_parts))
        params = abstract_params(model.stored_table())
        key = jax.eval_shape(lambda: jax.random.key(0))
        gradients = make_gradients(model, layout)

        def both(params: Params, batch: Any, held: Any, key: Any) -> Any:
            """The logits' pass, then that of the weights, as a step has them."""
            logits = of_logits(gradients(params, held, key)[1])
            return logits, gradients(params, batch, key)

        if experiment.train.bilevel.on:
            return jax.make_jaxpr(both)(params, batch, batch, key).jaxpr
        return jax.make_jaxpr(gradients)(params, batch, key).jaxpr

    return program
