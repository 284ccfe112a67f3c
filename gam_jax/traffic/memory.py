"""What the state of a run holds on each device between steps, by formula."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from gam_jax.bilevel import Bilevel
from gam_jax.local import Local
from gam_jax.models.base import Model, on_stages
from gam_jax.ops.choices import ARCHITECTURE
from gam_jax.optimizer import OptimizerConfig, make_optimizer, trained
from gam_jax.params import (
    FLOAT32,
    Param,
    codings,
    param_specs,
    path_name,
    shard_dims,
    stored_specs,
)
from gam_jax.traffic.sizes import FLOAT
from sharding.host_memory import chosen, share
from sharding.layout import Layout
from sharding.quantised import coded_bytes

COUNT = 4
"""Bytes of a count of steps."""
COUNTERS = 2 * COUNT
"""Of the optimizer's two: of the averages, and of the rate. That of logits has one, of averages."""


@dataclasses.dataclass(frozen=True)
class StateBytes:
    """Bytes on one device.

    Attributes:
      parameters: in the dtypes in which they are stored.
      master: the float32 copy of those that are stored in less and trained.
      moments: the optimizer's two averages of each parameter that it trains, of all workers there.
      meeting: what workers keep for when they meet, see `gam_jax.local.LocalState`.
      workers: how many are on the device.
      counters: the optimizer's counts of steps, of a worker.
      host: of the moments, those that lie in the host's memory between steps.
    """

    parameters: int
    master: int
    moments: int
    meeting: int = 0
    workers: int = 1
    host: int = 0
    counters: int = COUNTERS

    @property
    def optimizer(self) -> int:
        """Of the optimizer's state: master, moments, counters and what workers keep."""
        return self.master + self.moments + self.workers * self.counters + self.meeting

    @property
    def total(self) -> int:
        """Of both."""
        return self.parameters + self.optimizer


def state_bytes(
    model: Model,
    config: OptimizerConfig,
    layout: Layout | None = None,
    local: Local = Local(),
    bilevel: Bilevel = Bilevel(),
) -> StateBytes:
    """The bytes of parameters and optimizer's state.

    Args:
      model: fitted to its data.
      config: of the optimizer.
      layout: the mesh and its uses; None for one device alone.
      local: the run's workers.
      bilevel: the run's optimizer of logits, whose averages are float32.
    """
    if layout is not None:
        model, layout = on_stages(model, layout)
    table: Any = model.stored_table()
    paths = jax.tree_util.tree_leaves_with_path(
        trained(make_optimizer(config, 10**9, table), table), is_leaf=_is_param
    )
    own = {path_name(path) for path, _ in paths}
    moment = 2 * jnp.dtype(config.moments).itemsize
    wanted = 0.0 if layout is None else share(layout.parallel.offload)
    sizes = {path_name(path): math.prod(param.shape) for path, param in paths}
    away = dict(zip(sizes, chosen([*sizes.values()], wanted), strict=True))
    parameters = master = moments = meeting = host = 0
    workers = local.workers // (1 if layout is None else layout.mesh.shape["worker"])
    outer = FLOAT * (workers * local.delay + (local.momentum > 0))
    for path, param in jax.tree_util.tree_leaves_with_path(table, is_leaf=_is_param):
        whole = math.prod(param.shape)
        kept = used = whole
        if layout is not None:
            used = whole // _parts(stored_specs({"": param}, layout)[""], layout)
            kept = whole // _parts(param_specs({"": param}, layout)[""], layout)
        parameters += kept * jnp.dtype(param.dtype).itemsize
        meeting += used * outer
        if path_name(path) in own:
            apart = bilevel.on and ARCHITECTURE in path_name(path).split("/")
            moments += workers * used * (2 * FLOAT if apart else moment)
            host += used * moment * away[path_name(path)]
            master += used * FLOAT * (param.dtype != FLOAT32)
    counters = COUNTERS + bilevel.on * COUNT
    return StateBytes(parameters, master, moments, meeting, workers, host, counters)


@dataclasses.dataclass(frozen=True)
class StepBytes:
    """Bytes on one device while a step runs, besides those between steps.

    Attributes:
      gradients: that the parts of a batch are summed into, float32.
      secondary: the second copy of the parameters, in the dtypes in which they are stored, or as
        they are sent where that is in few bits; 0 where there is none.
    """

    gradients: int
    secondary: int


@functools.lru_cache(maxsize=64)  # plans ask for many parts of a batch on each mesh
def step_bytes(model: Model, layout: Layout) -> StepBytes:
    """What degrees of gradients and of a second copy hold, see `sharding.degrees`."""
    model, layout = on_stages(model, layout)
    gradients = secondary = 0
    for param in jax.tree.leaves(model.stored_table(), is_leaf=_is_param):

        def part(over: tuple[str, ...], param: Param = param) -> int:
            spec = stored_specs({"": param}, layout, over)[""]
            return math.prod(param.shape) // _parts(spec, layout)

        gradients += part(layout.gradient_axes) * FLOAT
        coding, stored = codings({"": param}, layout)[""], part(layout.weight_axes)
        copied, layers = part(layout.layer_axes), math.prod(param.shape[: coding.layers])
        layers //= layout.stages if coding.layers else 1
        if coding.bits.weights and shard_dims({"": param}, layout)[""]:
            each = coded_bytes(stored // layers, coding.bits.weights)
            secondary += copied // stored * layers * each
        elif layout.degrees.secondary:
            secondary += copied * jnp.dtype(param.dtype).itemsize
    return StepBytes(gradients, secondary)


def _parts(spec: PartitionSpec, layout: Layout) -> int:
    """How many parts an array is split into."""
    return math.prod(layout.mesh.shape[axis] for axis in jax.tree.leaves(tuple(spec)))


def _is_param(leaf: object) -> bool:
    return isinstance(leaf, Param)
