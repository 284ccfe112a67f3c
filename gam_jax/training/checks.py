"""Whether an experiment fits a mesh: said before anything compiles."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from gam_jax.optimizer import make_optimizer
from gam_jax.params import abstract_params, stored_specs
from gam_jax.training.experiment import Experiment
from gam_jax.training.step import make_eval_step
from sharding.errors import UserError
from sharding.layout import Layout
from sharding.mesh import make_mesh


def check_batch(experiment: Experiment, layout: Layout) -> None:
    """Raises a UserError if the rows or tokens of a training batch do not divide."""
    settings = experiment.train
    layout.check_batch(settings.batch // settings.accumulate, experiment.data.window)


def check_streams(experiment: Experiment, layout: Layout) -> None:
    """Raises a UserError if there are devices for parallel streams that a model does not have."""
    devices, streams = layout.mesh.shape["stream"], experiment.model.streams
    if streams == 1 < devices or streams % devices:
        raise UserError(
            f"mesh axis stream={devices} does not divide the model's streams, {streams}: change "
            f"--config.model.streams, or the mesh"
        )


def check_fits(experiment: Experiment, layout: Layout) -> None:
    """Raises a UserError that names the parameter or field that does not fit the mesh.

    The model's program is traced, not compiled, which finds what a layer itself refuses (a shard
    shorter than a convolution's reach, say).
    """
    table = experiment.model.table()
    check_streams(experiment, layout)
    stored_specs(table, layout)
    make_optimizer(experiment.optimizer, experiment.train.steps, table)
    shape = (layout.row_parts, experiment.data.window)
    layout.check_batch(*shape)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    weights = jax.ShapeDtypeStruct(shape, jnp.float32)
    batch = {"inputs": tokens, "targets": tokens, "weights": weights}
    try:
        jax.eval_shape(make_eval_step(experiment.model, layout), abstract_params(table), batch)
    except ValueError as error:
        raise UserError(f"{layout.shown}: {error}") from error


def refusal(experiment: Experiment, sizes: Mapping[str, int]) -> str | None:
    """Why an experiment does not fit a mesh of these sizes; None if it does."""
    try:
        layout = Layout(make_mesh(**dict(sizes)), experiment.parallel)  # type: ignore[arg-type]
        check_batch(experiment, layout)
        check_fits(experiment, layout)
    except UserError as error:
        return str(error)
    return None
