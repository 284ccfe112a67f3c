"""The compiled steps of training and of scoring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from gam_jax.bilevel import LevelState, TwoLevels, of_logits, with_logits
from gam_jax.master import Mastered, updated
from gam_jax.models.base import (
    BATCH,
    TOKEN,
    Batch,
    Measures,
    Model,
    check_stages,
    on_stages,
)
from gam_jax.optimizer import trained
from gam_jax.params import (
    Params,
    codings,
    gathered,
    gradient_specs,
    mean_of_counted,
    movable,
    param_specs,
    rule_specs,
    shard_dims,
    shardings,
    stored_specs,
    widened,
    with_movable,
    without_counted,
)
from gam_jax.training.pipeline import scores_in_stages, through_stages
from gam_jax.training.state import TrainState, state_shardings
from gam_jax.training.turns import in_turn
from sharding import collectives, zero
from sharding.host_memory import fetched, returned
from sharding.layout import Layout

Specs = dict[str, PartitionSpec]
"""Of each array of a batch."""
HELD = 2**31 - 1
"""Folded into a step's key for the rows that train logits; parts of a batch are folded in too."""
OPTIMIZER = "optimizer"
"""The scope of what is computed after the gradients, in traces and in counts of products."""


def batch_specs(model: Model, layout: Layout, accumulate: int = 1) -> Specs:
    """How the arrays of a batch lie on a mesh: rows over `data` and `expert`, tokens over `seq`.

    With accumulation an array is [accumulate, rows, ...], so that each part is spread over all.
    """
    places = {BATCH: layout.axes.rows or None, TOKEN: layout.axes.seq, None: None}
    first = (None,) if accumulate > 1 else ()
    return {
        name: PartitionSpec(*first, *(places[axis] for axis in axes))
        for name, axes in model.batch_axes().items()
    }


def put_batch(model: Model, layout: Layout, batch: Batch, accumulate: int = 1) -> dict[str, Array]:
    """A whole batch, placed on the mesh as the compiled steps take it."""
    placed = shardings(batch_specs(model, layout, accumulate), layout)
    return {name: jax.device_put(x, placed[name]) for name, x in batch.items()}


def make_gradients(
    model: Model, layout: Layout, accumulate: int = 1, fill: float = 0.0
) -> Callable[[Params, Batch, Array], tuple[dict[str, Array], Params]]:
    """(params, batch, key) -> (measures, gradients), a program over the whole mesh.

    See `own_gradients`, which it is made of.
    """
    own = own_gradients(model, layout, accumulate, fill)
    model, layout = on_stages(model, layout)
    table = model.table()
    return jax.shard_map(
        own,
        mesh=layout.mesh,
        in_specs=(
            param_specs(table, layout),
            batch_specs(model, layout, accumulate),
            PartitionSpec(),
        ),
        out_specs=(PartitionSpec(), gradient_specs(table, layout)),
    )


def own_gradients(
    model: Model, layout: Layout, accumulate: int = 1, fill: float = 0.0
) -> Callable[[Params, Batch, Array], tuple[dict[str, Array], Params]]:
    """(params, batch, key) -> (measures, gradients), the program of one device.

    What is differentiated is total / count of the whole batch, plus the mean penalty of its parts:
    every row and token weighs alike, whichever part and device it is in. A batch whose weights are
    all zero has loss 0 and gradient 0. Measures are the "loss", the "penalty" where there is one,
    and those of the model's `objective`.

    Each device differentiates by its own copy of the parameters, and what they found is summed
    once: all-reduced, or reduce-scattered where ZeRO splits the optimizer's state. Where it
    splits gradients too, they are reduce-scattered by the backward pass, layer by layer.

    Gradients are float32, and by float32 values of the parameters, in whatever dtype these are
    stored.

    Args:
      model: what is trained.
      layout: the mesh and its uses.
      accumulate: parts that a batch [accumulate, rows, ...] is taken in, one after another, or
        through the stages of the mesh axis `pipe`.
      fill: what buffers between stages hold at first, see `sharding.pipeline.executor.run`.

    Raises:
      UserError: a model or parts that cannot go through the stages of the mesh.
    """
    check_stages(model, layout)
    model, layout = on_stages(model, layout)
    table, axes = model.table(), layout.axes.within_stage
    dims, split = shard_dims(table, layout), layout.gradient_axes
    coding = codings(table, layout)
    spread = _spread_over(table, layout)
    every = (*axes.batch, "pipe") if layout.stages > 1 else axes.batch

    def weighed(found: Any, scale: Array) -> tuple[Array, Measures]:
        total, penalty, measures = found
        total, measures = _over_devices((total, measures), axes.batch)
        sums = {"loss": (total, jnp.ones(())), **measures}
        if isinstance(penalty, float) and not penalty:
            return total * scale, sums
        share = jnp.asarray(penalty, jnp.float32) / accumulate
        return total * scale + share, {**sums, "penalty": (share, jnp.ones(()))}

    def one(params: Params, part: Batch, key: Array, scale: Array) -> tuple[Measures, Params]:
        own = zero.differentiated(params)

        def objective(moved: list[Array]) -> tuple[Array, Measures]:
            arrays = with_movable(table, moved, lambda leaf: leaf, own)
            whole = gathered(table, zero.put(params, arrays))
            return weighed(model.objective(whole, part, axes, key=key), scale)

        (_, sums), grads = jax.value_and_grad(objective, has_aux=True)(movable(table, own))
        return sums, with_movable(table, grads, lambda _: jnp.zeros(()), own)

    def in_order(params: Params, batch: Batch, key: Array, scale: Array) -> tuple[Measures, Params]:
        if accumulate == 1:
            return one(params, batch, key, scale)

        def add(total: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
            found = one(params, part[0], jax.random.fold_in(key, part[1]), scale)
            return jax.tree.map(jnp.add, total, found), None

        first = jax.tree.map(lambda x: x[0], dict(batch))
        types = jax.eval_shape(one, params, first, key, scale)
        start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), types)
        start = collectives.typed_as(start, types)
        total, _ = lax.scan(add, start, (dict(batch), jnp.arange(accumulate)))
        return total

    own = in_order
    if layout.stages > 1:
        own = through_stages(model, layout, accumulate, weighed, fill)

    def gradients(params: Params, batch: Batch, key: Array) -> tuple[dict[str, Array], Params]:
        params = zero.shards(params, dims, layout.weight_axes, layout.layer_axes, split, coding)
        params = jax.tree.map(lambda x: collectives.as_varying(x, every), widened(params))
        count = _over_devices(model.count(_joined(batch, accumulate), axes), axes.batch)
        scale = jnp.where(count > 0, 1 / jnp.where(count > 0, count, 1), 0)
        sums, grads = own(params, batch, key, scale)
        whole = {"loss": sums.pop("loss")[0] * scale}
        if "penalty" in sums:
            whole["penalty"] = sums.pop("penalty")[0]
        measures = whole | {name: _mean(*pair) for name, pair in sums.items()}
        each = (movable(table, tree) for tree in (grads, dims, spread, coding))
        summed, own_dims, own_spread, own_coding = each
        found = zero.sum_gradients(
            summed, own_dims, layout.state_axes, split, own_spread, own_coding
        )
        grads = with_movable(table, found, lambda leaf: leaf, grads)
        return measures, mean_of_counted(table, grads, accumulate)

    return gradients


def _over_devices(tree: Any, batch_axes: tuple[str, ...]) -> Any:
    """Sums what differs between the devices that a batch is spread over; leaves what is alike."""

    def one(x: Any) -> Array:
        x = jnp.asarray(x, jnp.float32)
        return collectives.psum(x, [name for name in batch_axes if name in collectives.varying(x)])

    return jax.tree.map(one, tree)


def _joined(batch: Batch, accumulate: int) -> Batch:
    """The parts of a batch as one."""
    if accumulate == 1:
        return batch
    return {name: x.reshape(-1, *x.shape[2:]) for name, x in batch.items()}


def _mean(total: Array, count: Array) -> Array:
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1), 0)


def _spread_over(table: Any, layout: Layout) -> Any:
    """The mesh axes over which each parameter's gradient is spread: of a split one, not its own."""
    axes = (*layout.axes.batch, "pipe") if layout.stages > 1 else layout.axes.batch

    def others(spec: PartitionSpec) -> tuple[str, ...]:
        return tuple(name for name in axes if name not in jax.tree.leaves(tuple(spec)))

    return jax.tree.map(others, rule_specs(table, layout))


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    accumulate: int = 1,
    fill: float = 0.0,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """A compiled (state, batch) -> (state, metrics); the state given is used up.

    Args:
      model: what is trained.
      optimizer: sees global arrays, so clipping by global norm is right on any mesh; its
        arithmetic is done on shards where its state is in shards.
      layout: the mesh and its uses.
      accumulate: parts of a batch [accumulate, rows, ...], see `make_gradients`.
      fill: likewise.

    Returns:
      A function whose metrics are float32: the scalars loss and grad_norm, and the measures of
      the model's `objective`. Where logits are trained apart and one of them is not finite, the
      loss and grad_norm are NaN, whatever the weights' rows gave.
    """
    levels = optimizer if isinstance(optimizer, TwoLevels) else None
    parts = accumulate if levels is None else accumulate // 2
    gradients = make_gradients(model, layout, parts, fill)
    placed = state_shardings(model, optimizer, layout)
    model, layout = on_stages(model, layout)
    table = model.table()
    stored = shardings(stored_specs(table, layout), layout)
    weights = optimizer if levels is None else levels.weights

    def moved(grads: Params, opt_state: Any, params: Params) -> tuple[Params, Any]:
        params = lax.with_sharding_constraint(params, stored)
        with jax.named_scope(OPTIMIZER):
            params, opt_state = updated(optimizer, grads, opt_state, params)
            return spread(params, table, layout), opt_state

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        if levels is not None:
            held = jax.tree.map(lambda x: x[parts] if parts == 1 else x[parts:], dict(batch))
            batch = jax.tree.map(lambda x: x[0] if parts == 1 else x[:parts], dict(batch))
            state = _with_logits(levels, gradients, table, layout, state, held)
        key = jax.random.fold_in(state.key, state.step)
        if model.rivals:
            opt_state = fetched(state.opt_state, placed.opt_state)
            measures, grads, params, opt_state = in_turn(
                lambda params: gradients(params, batch, key),
                moved,
                optimizer,
                state.params,
                opt_state,
                model.rivals,
            )
        else:
            measures, grads = gradients(state.params, batch, key)
            with jax.named_scope(OPTIMIZER):
                opt_state = fetched(state.opt_state, placed.opt_state)
            params, opt_state = moved(grads, opt_state, state.params)
        with jax.named_scope(OPTIMIZER):
            opt_state = returned(opt_state, placed.opt_state)
        after = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        norm = optax.tree.norm(trained(weights, without_counted(table, grads)))
        measures = {**measures, "grad_norm": norm}
        if levels is not None:  # an option that is drawn by such logits has a loss all the same
            own = jax.tree.leaves(of_logits(params))
            finite = jnp.all(jnp.stack([jnp.isfinite(x).all() for x in own]))
            measures |= {n: jnp.where(finite, measures[n], jnp.nan) for n in ("loss", "grad_norm")}
        return after, measures

    batches = shardings(batch_specs(model, layout, accumulate), layout)
    return jax.jit(
        step, donate_argnums=0, in_shardings=(placed, batches), out_shardings=(placed, None)
    )


def _with_logits(
    optimizer: TwoLevels,
    gradients: Callable[[Params, Batch, Array], tuple[dict[str, Array], Params]],
    table: Any,
    layout: Layout,
    state: TrainState,
    held: Batch,
) -> TrainState:
    """The state after a step of the logits alone, where one is due."""
    opt_state, inner = state.opt_state, isinstance(state.opt_state, Mastered)
    levels: LevelState = opt_state.inner if inner else opt_state
    own = of_logits(table)
    stored = shardings(stored_specs(own, layout), layout)
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), HELD)

    def moved(logits: Any, found: Any) -> tuple[Any, Any]:
        grads = of_logits(gradients(state.params, held, key)[1])
        with jax.named_scope(OPTIMIZER):
            logits = lax.with_sharding_constraint(logits, stored)
            logits, found = optimizer.step_logits(grads, found, logits)
            return spread(logits, own, layout), found

    logits, found = lax.cond(
        optimizer.due(state.step),
        moved,
        lambda *as_they_are: as_they_are,
        of_logits(state.params),
        levels.logits,
    )
    levels = levels._replace(logits=found)
    opt_state = opt_state._replace(inner=levels) if inner else levels
    return state.replace(params=with_logits(state.params, logits), opt_state=opt_state)


def spread(params: Any, table: Any, layout: Layout, workers: bool = False) -> Any:
    """Gives devices the parameters that ZeRO updated in smaller parts than they are stored in.

    With `workers` each array is [workers, ...], and one worker's are gathered after another's.
    """
    over = layout.state_axes[len(layout.weight_axes) :]
    if not over:
        return params
    dims = shard_dims(table, layout)

    def gather(params: Params) -> Params:
        def one(x: Array, dim: int) -> Array:
            for axis in reversed(over) if dim else ():
                x = collectives.all_gather(x, axis, x.ndim + dim)
            return x

        return jax.tree.map(one, params, dims)

    specs = stored_specs(table, layout), param_specs(table, layout)
    program = gather
    if workers:
        specs = jax.tree.map(lambda spec: PartitionSpec(layout.worker_axis, *spec), specs)

        def program(params: Params) -> Params:
            return lax.map(gather, params)

    return jax.shard_map(program, mesh=layout.mesh, in_specs=specs[:1], out_specs=specs[1])(params)


def make_eval_step(
    model: Model, layout: Layout, accumulate: int = 1, fill: float = 0.0
) -> Callable[[Params, Batch], Measures]:
    """A compiled (params, batch) -> name -> (sum, count) of all devices, without dropout.

    "loss" is the first of the names; the others are the scalar measures of `Model.scored`.

    Args:
      model: what is scored.
      layout: the mesh and its uses.
      accumulate: parts of a training batch: in so many, or as many of these as divide its rows, a
        batch [rows, ...] goes through the stages of the mesh axis `pipe`.
      fill: see `make_gradients`.
    """
    model, layout = on_stages(model, layout)
    in_stages = None
    if layout.stages > 1:
        in_stages = scores_in_stages(model, layout, accumulate, fill)

    def evaluate(params: Params, batch: Batch) -> Measures:
        if in_stages is None:
            found = model.scored(params, batch, layout.axes)
        else:
            found = in_stages(params, batch)
        scalars = {name: pair for name, pair in found.items() if not jnp.ndim(pair[0])}
        return _over_devices(scalars, layout.axes.batch)

    return _compiled(evaluate, model, layout, PartitionSpec())


def make_nan_finder(model: Model, layout: Layout) -> Callable[[Params, Batch], Array | None]:
    """A compiled (params, batch) -> which losses of rows or tokens are NaN, whole on every device.

    None of a model that does not tell its `losses`.
    """
    model, layout = on_stages(model, layout)

    def find(params: Params, batch: Batch) -> Array | None:
        losses = model.losses(params, batch, layout.axes)
        return None if losses is None else jnp.isnan(losses)

    return _compiled(find, model, layout, batch_specs(model, layout)["weights"], whole=True)


def _compiled(
    own: Callable[[Params, Batch], Any],
    model: Model,
    layout: Layout,
    result: PartitionSpec,
    whole: bool = False,
) -> Callable[[Params, Batch], Any]:
    """A program of one device, over whole parameters and its part of a batch, for the mesh."""
    table = model.table()

    def program(params: Params, batch: Batch) -> Any:
        params = zero.shards(widened(params), shard_dims(table, layout), layout.weight_axes)
        return own(gathered(table, params), batch)

    specs = param_specs(table, layout), batch_specs(model, layout)
    sharded = jax.shard_map(program, mesh=layout.mesh, in_specs=specs, out_specs=result)
    placed = tuple(shardings(spec, layout) for spec in specs)
    out = NamedSharding(layout.mesh, PartitionSpec()) if whole else None
    return jax.jit(sharded, in_shardings=placed, out_shardings=out)
