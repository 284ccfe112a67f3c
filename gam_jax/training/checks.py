"""Whether an experiment fits a mesh: said before anything compiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from gam_jax.layers import Mixed
from gam_jax.layers.mixed import check_apart
from gam_jax.models import Masked
from gam_jax.models.base import TOKEN, Model, on_stages
from gam_jax.nested import held
from gam_jax.params import FLOAT32, abstract_params, stored_specs
from gam_jax.training.experiment import Experiment, run_optimizer
from gam_jax.training.pipeline import table_of
from gam_jax.training.step import make_eval_step
from sharding.errors import UserError
from sharding.host_memory import check_kinds, kinds_of
from sharding.layout import Layout
from sharding.mesh import make_mesh
from sharding.pipeline.tables import INTERLEAVED, ONE_F_ONE_B


def check_arrays(model: Model, batch: Mapping[str, Any], name: str) -> None:
    """Raises a UserError if the data gives other arrays than the model reads.

    Args:
      model: what reads them.
      batch: shapes by name.
      name: of the data, for the message.
    """
    wanted = model.batch_axes()
    if wanted.keys() != batch.keys():
        raise UserError(
            f"data.name={name} gives {_listed(batch)}, and {type(model).__name__} reads "
            f"{_listed(wanted)}: give the arrays these names"
        )
    for array, axes in wanted.items():
        if len(axes) != len(batch[array].shape):
            raise UserError(
                f"data.name={name}: '{array}' has {len(batch[array].shape)} dimensions, and "
                f"{type(model).__name__} reads {len(axes)} ({', '.join(map(str, axes))})"
            )


def check_batch(experiment: Experiment, layout: Layout) -> None:
    """Raises a UserError if the rows, tokens, parts or workers of a training batch do not divide.

    Or if the run's workers cannot be on that mesh at all, or its moments in no host's memory.
    """
    settings = experiment.train
    _check_workers(experiment, layout)
    _check_memory(layout)
    if settings.bilevel.on and experiment.parallel.offload:
        raise UserError(
            f"parallel.offload={experiment.parallel.offload}: train.bilevel needs the moments of "
            f"logits before those of weights: leave it out"
        )
    if experiment.model.rivals and (settings.bilevel.on or settings.local.on):
        field = "train.bilevel" if settings.bilevel.on else "train.local"
        raise UserError(
            f"{field}: {type(experiment.model).__name__} is trained in turns with "
            f"{', '.join(experiment.model.rivals)}, and in no other steps: leave out the one or "
            f"the other"
        )
    _check_parts(experiment, layout)
    rows = settings.batch // settings.accumulate // settings.local.workers
    window = getattr(experiment.data, "window", None)
    layout.check_batch(rows, window if _reads_tokens(experiment.model) else None)


def _check_workers(experiment: Experiment, layout: Layout) -> None:
    local, devices = experiment.train.local, layout.mesh.shape.get("worker", 1)
    if local.workers % devices:
        raise UserError(
            f"mesh axis worker={devices} does not divide train.local.workers={local.workers}: "
            f"change the one or the other"
        )
    if not local.on:
        return
    if isinstance(experiment.model, Masked):
        raise UserError("train.local: what workers send are numbers, and masks are none")
    if layout.stages > 1:
        raise UserError(
            f"mesh axis pipe={layout.stages}: workers (train.local) have no stages: make it 1"
        )
    if experiment.parallel.offload:
        raise UserError(
            f"parallel.offload={experiment.parallel.offload}: workers (train.local) need their "
            f"moments in every step of a round: leave it out"
        )
    if experiment.model.param_dtype != FLOAT32:
        raise UserError(
            f"model.param_dtype={experiment.model.param_dtype}: workers (train.local) meet in "
            f"parameters of float32: leave it so, model.dtype may be another"
        )
    if layout.worker_axis and _draws(experiment.model):
        check_apart(layout.axes, [layout.worker_axis])


def _draws(config: Any) -> bool:
    """Whether a mixed layer somewhere inside runs one option of several."""
    return (isinstance(config, Mixed) and config.how != "sum") or any(map(_draws, held(config)))


def _check_parts(experiment: Experiment, layout: Layout) -> None:
    """Refuses parts of a batch that cannot go through the stages."""
    settings, stages = experiment.train, layout.stages
    grouped = layout.parallel.schedule == INTERLEAVED
    if settings.bilevel.on and grouped and settings.parts % stages:
        raise UserError(
            f"train.accumulate={settings.accumulate}: with train.bilevel each half of the parts "
            f"is interleaved by itself, in groups of {stages}, one a stage: give a multiple of "
            f"{2 * stages}, or parallel.schedule={ONE_F_ONE_B}"
        )
    table_of(layout, settings.parts)


def _check_memory(layout: Layout) -> None:
    """Refuses moments in a memory that the devices of this process do not have."""
    own = [d for d in layout.mesh.devices.flat if d.process_index == jax.process_index()]
    for device in own[:1] if layout.parallel.offload else ():
        check_kinds(layout.parallel.offload, device.platform, kinds_of(device))


def check_fits(
    experiment: Experiment, layout: Layout, batch: Mapping[str, Any] | None = None
) -> None:
    """Raises a UserError that names the parameter or field that does not fit the mesh.

    The model's program is traced, not compiled, which finds what a layer itself refuses (a shard
    shorter than a convolution's reach, say).

    Args:
      experiment: with a model that is fitted to its data.
      layout: the mesh.
      batch: shapes of a batch of `layout.row_parts` rows; those that the data's configuration
        tells if None.
    """
    model = experiment.model
    if experiment.train.local.on:
        layout = layout.without_workers  # as they validate; how they train is `check_batch`'s
    model.check_mesh(layout)
    placed, own = on_stages(model, layout)
    table = placed.table()
    stored_specs(table, own)
    run_optimizer(experiment)
    batch = experiment.data.batch(layout.row_parts) if batch is None else batch
    check_arrays(model, batch, experiment.data.name)
    layout.check_batch(layout.row_parts, _tokens(model, batch))
    try:
        jax.eval_shape(make_eval_step(model, layout), abstract_params(table), dict(batch))
    except (ValueError, ArithmeticError) as error:  # numbers too large for their type, too
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


def _reads_tokens(model: Model) -> bool:
    return any(TOKEN in axes for axes in model.batch_axes().values())


def _tokens(model: Model, batch: Mapping[str, Any]) -> int | None:
    """Tokens of a row, where arrays have them."""
    for name, axes in model.batch_axes().items():
        if TOKEN in axes:
            return batch[name].shape[axes.index(TOKEN)]
    return None


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))
