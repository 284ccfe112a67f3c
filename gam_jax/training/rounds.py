"""The compiled round of workers that meet now and then, see `gam_jax.local`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array

from gam_jax.local import Local, LocalState, Workers, meet
from gam_jax.master import updated
from gam_jax.models.base import Batch, Model
from gam_jax.optimizer import trained
from gam_jax.params import (
    Params,
    any_average,
    param_specs,
    shardings,
    stored_specs,
    with_averages,
    without_counted,
)
from gam_jax.training.state import TrainState, state_shardings
from gam_jax.training.step import (
    OPTIMIZER,
    Specs,
    batch_specs,
    make_train_step,
    own_gradients,
    spread,
)
from sharding import collectives
from sharding.layout import Layout

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def make_step(
    model: Model, optimizer: optax.GradientTransformation, layout: Layout, accumulate: int = 1
) -> Step:
    """What the loop calls again and again: a round of workers, or a step where there are none."""
    if isinstance(optimizer, Workers):
        return make_round(model, optimizer, layout, accumulate)
    return make_train_step(model, optimizer, layout, accumulate)


def make_round(model: Model, optimizer: Workers, layout: Layout, accumulate: int = 1) -> Step:
    """A compiled (state, batches) -> (state, metrics); the state given is used up.

    Every worker takes `every` steps from the state's parameters, with its own rows, moments and
    dropout; then all go on from one point (`gam_jax.local.meet`). Workers of one device take turns,
    so a run is the same however they lie. Of delay 1 what is summed over workers was known before
    the round, and no step of the round waits for it. Running averages (`Param.average`) are always
    the mean of those that workers have at the end of this round.

    Args:
      model: what is trained, with parameters in float32.
      optimizer: see `gam_jax.local.with_workers`.
      layout: the mesh, whose axis `worker` splits workers; one stage.
      accumulate: parts that the rows of a worker are taken in.

    Returns:
      A function of batches as `round_specs` says; metrics are those of `make_train_step`, means
      over workers, [every, ...].
    """
    local, own, table = optimizer.local, optimizer.own, model.table()
    gradients = _gradients(model, layout, accumulate)
    placed = state_shardings(model, optimizer, layout)
    held = shardings(_lifted(param_specs(table, layout), layout), layout)
    stored = shardings(stored_specs(table, layout), layout)
    stored_each = shardings(_lifted(stored_specs(table, layout), layout), layout)

    def one_update(grads: Params, opt_state: Any, params: Params) -> tuple[Params, Any, Array]:
        params, opt_state = updated(own, grads, opt_state, params)
        return params, opt_state, optax.tree.norm(trained(own, without_counted(table, grads)))

    def round_(state: TrainState, batches: Batch) -> tuple[TrainState, dict[str, Array]]:
        outer: LocalState = state.opt_state
        waited = _mean(outer.sent, table, layout, local) if local.delay else None

        def step(carry: Any, now: tuple[Batch, Array]) -> tuple[Any, dict[str, Array]]:
            (params, opt_state), (batch, number) = carry, now
            keys = jax.vmap(lambda worker: _key_of(state.key, number, worker, local))(
                jnp.arange(local.workers)
            )
            told, grads = gradients(params, batch, keys)
            params = lax.with_sharding_constraint(params, stored_each)
            with jax.named_scope(OPTIMIZER):
                params, opt_state, norm = jax.vmap(one_update)(grads, opt_state, params)
                params = spread(params, table, layout, workers=True)
            told = {name: jnp.mean(x, axis=0) for name, x in {**told, "grad_norm": norm}.items()}
            return (lax.with_sharding_constraint(params, held), opt_state), told

        begin = jax.tree.map(lambda x: jnp.broadcast_to(x, (local.workers, *x.shape)), state.params)
        begin = lax.with_sharding_constraint(begin, held)
        numbers = state.step + jnp.arange(local.every)
        (ends, inner), told = lax.scan(step, (begin, outer.inner), (dict(batches), numbers))
        with jax.named_scope(OPTIMIZER):
            params = lax.with_sharding_constraint(state.params, stored)
            ends = lax.with_sharding_constraint(ends, stored_each)
            sent = jax.tree.map(lambda x, end: x - end, params, ends)
            moved = _mean(sent, table, layout, local) if waited is None else waited
            began = params
            params, momentum = meet(local, began, outer.momentum, moved)
            if any_average(table):  # a further step than that could make a variance negative
                own = moved if waited is None else _mean(sent, table, layout, local)
                params = with_averages(table, params, jax.tree.map(jnp.subtract, began, own))
            params = spread(params, table, layout)
        opt_state = LocalState(momentum, sent if local.delay else None, inner)
        after = state.replace(step=state.step + local.every, params=params, opt_state=opt_state)
        return after, told

    lies = shardings(round_specs(model, layout, accumulate), layout)
    return jax.jit(
        round_, donate_argnums=0, in_shardings=(placed, lies), out_shardings=(placed, None)
    )


def round_specs(model: Model, layout: Layout, accumulate: int = 1) -> Specs:
    """How the arrays of a round lie: [every, workers, ...], what follows as in `batch_specs`."""
    return {
        name: PartitionSpec(None, layout.worker_axis, *spec)
        for name, spec in batch_specs(model, layout, accumulate).items()
    }


def in_round(parts: Sequence[np.ndarray], workers: int, accumulate: int) -> np.ndarray:
    """One array of all parts of a round's batches, [every, workers, accumulate, rows, ...].

    The rows of a part are dealt out to workers in blocks. Without the axis of parts where a batch
    is taken in one.
    """
    rows = np.stack(parts)
    rows = rows.reshape(-1, accumulate, workers, rows.shape[1] // workers, *rows.shape[2:])
    return rows[:, 0] if accumulate == 1 else rows.swapaxes(1, 2)


def put_round(
    model: Model, layout: Layout, parts: Sequence[Batch], local: Local, accumulate: int = 1
) -> dict[str, Array]:
    """Whole parts of a round's batches, placed on the mesh as the compiled round takes them."""
    placed = shardings(round_specs(model, layout, accumulate), layout)
    return {
        name: jax.device_put(
            in_round([np.asarray(part[name]) for part in parts], local.workers, accumulate), lies
        )
        for name, lies in placed.items()
    }


def _key_of(key: Array, number: Array, worker: Array, local: Local) -> Array:
    """The key of a worker's step; of one worker alone that of a run without workers."""
    key = jax.random.fold_in(key, number)
    return jax.random.fold_in(key, worker) if local.workers > 1 else key


def _lifted(specs: Any, layout: Layout) -> Any:
    """The specs of arrays that each worker has its own of."""
    return jax.tree.map(lambda spec: PartitionSpec(layout.worker_axis, *spec), specs)


def _gradients(
    model: Model, layout: Layout, accumulate: int
) -> Callable[[Params, Batch, Array], tuple[dict[str, Array], Params]]:
    """`make_gradients` of all workers: what it is given and gives has their axis first."""
    own, table = own_gradients(model, layout, accumulate), model.table()
    each = PartitionSpec(layout.worker_axis)

    def in_turn(params: Params, batch: Batch, keys: Array) -> tuple[dict[str, Array], Params]:
        return lax.map(lambda one: own(*one), (params, dict(batch), keys))

    of_batch = _lifted(batch_specs(model, layout, accumulate), layout)
    return jax.shard_map(
        in_turn,
        mesh=layout.mesh,
        in_specs=(_lifted(param_specs(table, layout), layout), of_batch, each),
        out_specs=(each, _lifted(stored_specs(table, layout), layout)),
    )


def _mean(tree: Any, table: Any, layout: Layout, local: Local) -> Any:
    """The mean over workers: as many numbers are sent as there are parameters on a device."""
    specs = stored_specs(table, layout)

    def program(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: collectives.psum(jnp.sum(x, axis=0), layout.worker_axis) / local.workers, tree
        )

    return jax.shard_map(
        program, mesh=layout.mesh, in_specs=(_lifted(specs, layout),), out_specs=specs
    )(tree)
