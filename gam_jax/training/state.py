"""The training state: what it holds, how it lies on a mesh, and how it begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from gam_jax.master import Mastered, begun, like_params, put_first
from gam_jax.models.base import Model, as_read, on_stages
from gam_jax.optimizer import trained
from gam_jax.params import Param, Params, param_specs, shardings, stored_specs
from sharding.host_memory import HOST, chosen, returned, share
from sharding.layout import Layout


class TrainState(flax.struct.PyTreeNode):
    """All that changes while training.

    Attributes:
      step: int32 scalar, updates done.
      params: as they are stored, see `Model.stored_table`.
      opt_state: the optimizer's; a `master.Mastered` where parameters are not all float32.
      key: the run's random key; step i uses fold_in(key, i).
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    key: Array


def state_shardings(model: Model, optimizer: optax.GradientTransformation, layout: Layout) -> Any:
    """A NamedSharding for every leaf of a TrainState.

    Moments and the master lie as their parameters do, or split further where ZeRO splits the
    optimizer's state; moments in the host's memory, as far as `parallel.offload` says.
    """
    model, layout = on_stages(model, layout)
    table = model.table()
    whole = NamedSharding(layout.mesh, PartitionSpec())
    abstract = abstract_state(model, optimizer)
    stored = shardings(stored_specs(table, layout), layout)
    opt_state = like_params(
        optimizer, abstract.opt_state, stored, lambda _: whole, lambda one: of_workers(one, layout)
    )
    if goes := host_mask(optimizer, abstract.opt_state, table, layout):
        opt_state = jax.tree.map(
            lambda lies, host: lies.with_memory_kind(HOST) if host else lies, opt_state, goes
        )
    params = shardings(param_specs(table, layout), layout)
    return abstract.replace(step=whole, params=params, opt_state=opt_state, key=whole)


def host_mask(
    optimizer: optax.GradientTransformation, opt_state: Any, table: Any, layout: Layout
) -> Any:
    """For each leaf of an optimizer's state whether it lies on the host; None if none does.

    Arrays go whole, the largest first, until they hold the share that `parallel.offload` says.
    """
    wanted = share(layout.parallel.offload)
    if not wanted:
        return None
    leaves, structure = jax.tree.flatten(table, is_leaf=lambda x: isinstance(x, Param))
    moved = trained(optimizer, jax.tree.unflatten(structure, range(len(leaves))))
    own = jax.tree.leaves(moved)
    marks = dict(zip(own, chosen([math.prod(leaves[i].shape) for i in own], wanted), strict=True))
    goes = jax.tree.unflatten(structure, [marks.get(i, False) for i in range(len(leaves))])
    found = like_params(optimizer, opt_state, goes, lambda _: False)
    if isinstance(found, Mastered):
        found = found._replace(master=jax.tree.map(lambda _: False, found.master))
    return found


def of_workers(lies: NamedSharding, layout: Layout) -> NamedSharding:
    """How an array lies that each worker has its own of, [workers, ...]."""
    return NamedSharding(layout.mesh, PartitionSpec(layout.worker_axis, *lies.spec))


def new_state(model: Model, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """The state before the first step; parameters and run use different keys."""
    params_key, run_key = jax.random.split(key)
    params, opt_state = begun(optimizer, model.stored_table(), model.init_params(params_key))
    return TrainState(
        step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state, key=run_key
    )


def abstract_state(model: Model, optimizer: optax.GradientTransformation) -> Any:
    """A TrainState of shapes and dtypes."""
    return jax.eval_shape(lambda: new_state(model, optimizer, jax.random.key(0)))


def init_state(
    model: Model, optimizer: optax.GradientTransformation, layout: Layout, seed: int
) -> TrainState:
    """`new_state` placed on the mesh, as it is read: see `gam_jax.training.order`."""
    return make_init(model, optimizer, layout)(jax.random.key(seed))


def make_init(
    model: Model, optimizer: optax.GradientTransformation, layout: Layout
) -> Callable[[Array], TrainState]:
    """A compiled function of the run's key, see `init_state`."""
    placed = state_shardings(model, optimizer, as_read(model, layout))

    def init(key: Array) -> TrainState:
        state = new_state(model, optimizer, key)
        return state.replace(opt_state=returned(state.opt_state, placed.opt_state))

    return jax.jit(init, out_shardings=placed)


def begun_from(state: TrainState, wide: Params) -> TrainState:
    """A state before its first step with other parameters, float32 values from anywhere."""
    params, opt_state = put_first(state.params, state.opt_state, wide)
    return state.replace(params=params, opt_state=opt_state)
