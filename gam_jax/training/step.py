"""The training state and the compiled steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from gam_jax.models.language import LanguageModel
from gam_jax.optimizer import trained
from gam_jax.params import (
    Params,
    param_specs,
    rule_specs,
    shard_dims,
    shardings,
    stored_specs,
    without_signs,
)
from sharding import collectives, zero
from sharding.layout import Layout

Batch = Mapping[str, Any]
"""inputs and targets, int32 [B, T]; weights, float32 [B, T]."""


def batch_spec(layout: Layout, accumulate: int = 1) -> PartitionSpec:
    """How a batch lies on a mesh: rows over `data` and `expert`, tokens over `seq`.

    With accumulation a batch is [accumulate, rows, T], so that each part is spread over all.
    """
    rows_and_tokens = layout.axes.rows or None, layout.axes.seq
    return PartitionSpec(*((None,) if accumulate > 1 else ()), *rows_and_tokens)


class TrainState(flax.struct.PyTreeNode):
    """All that changes while training.

    Attributes:
      step: int32 scalar, updates done.
      params: float32, see the model's table.
      opt_state: the optimizer's.
      key: the run's random key; step i uses fold_in(key, i).
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    key: Array


def state_shardings(
    model: LanguageModel, optimizer: optax.GradientTransformation, layout: Layout
) -> Any:
    """A NamedSharding for every leaf of a TrainState.

    Moments lie as their parameters do, or split further where ZeRO splits the optimizer's state.
    """
    table = model.table()
    whole = NamedSharding(layout.mesh, PartitionSpec())
    abstract = abstract_state(model, optimizer)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract.opt_state,
        trained(optimizer, shardings(stored_specs(table, layout), layout)),
        transform_non_params=lambda _: whole,
    )
    params = shardings(param_specs(table, layout), layout)
    return abstract.replace(step=whole, params=params, opt_state=opt_state, key=whole)


def new_state(
    model: LanguageModel, optimizer: optax.GradientTransformation, key: Array
) -> TrainState:
    """The state before the first step; parameters and run use different keys."""
    params_key, run_key = jax.random.split(key)
    params = model.init_params(params_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        key=run_key,
    )


def abstract_state(model: LanguageModel, optimizer: optax.GradientTransformation) -> Any:
    """A TrainState of shapes and dtypes."""
    return jax.eval_shape(lambda: new_state(model, optimizer, jax.random.key(0)))


def init_state(
    model: LanguageModel, optimizer: optax.GradientTransformation, layout: Layout, seed: int
) -> TrainState:
    """`new_state` placed on the mesh."""
    placed = state_shardings(model, optimizer, layout)
    init = jax.jit(lambda key: new_state(model, optimizer, key), out_shardings=placed)
    return init(jax.random.key(seed))


def make_gradients(
    model: LanguageModel, layout: Layout, accumulate: int = 1
) -> Callable[[Params, Batch, Array], tuple[dict[str, Array], Params]]:
    """(params, batch, key) -> (measures, gradients), a program over the whole mesh.

    Measures are those of the model's `objective`, which is what is differentiated: its "loss" and,
    where layers have any, their penalty and statistics.

    Each device differentiates the loss by its own copy of the parameters, and what they found is
    summed once: all-reduced, or reduce-scattered where ZeRO splits the optimizer's state. Where
    it splits parameters too, the sum is the backward pass of their gathering, layer by layer.

    Args:
      model: what is trained.
      layout: the mesh and its uses.
      accumulate: parts that a batch [accumulate, rows, T] is taken in, one after another.
    """
    table, axes = model.table(), layout.axes
    dims, shard_axis = shard_dims(table, layout), layout.shard_axis
    spread = _spread_over(table, layout)

    def one(params: Params, part: Batch, key: Array) -> tuple[dict[str, Array], Params]:
        def objective(params: Params) -> tuple[Array, dict[str, Array]]:
            inputs, targets, weights = part["inputs"], part["targets"], part["weights"]
            return model.objective(params, inputs, targets, weights, axes, key=key)

        (_, measures), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return measures, grads

    def own(params: Params, batch: Batch, key: Array) -> tuple[dict[str, Array], Params]:
        if accumulate == 1:
            return one(params, batch, key)

        def add(total: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
            found = one(params, part[0], jax.random.fold_in(key, part[1]))
            return jax.tree.map(jnp.add, total, found), None

        first = jax.tree.map(lambda x: x[0], dict(batch))
        types = jax.eval_shape(one, params, first, key)
        start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), types)
        start = collectives.typed_as(start, types)
        total, _ = lax.scan(add, start, (dict(batch), jnp.arange(accumulate)))
        return jax.tree.map(lambda x: x / accumulate, total)

    def gradients(params: Params, batch: Batch, key: Array) -> tuple[dict[str, Array], Params]:
        params = jax.tree.map(lambda x: collectives.as_varying(x, axes.batch), params)
        if layout.shards_params:
            params = zero.shards(params, dims, shard_axis)
        measures, grads = own(params, batch, key)
        return measures, zero.sum_gradients(grads, dims, shard_axis, spread)

    return jax.shard_map(
        gradients,
        mesh=layout.mesh,
        in_specs=(param_specs(table, layout), batch_spec(layout, accumulate), PartitionSpec()),
        out_specs=(PartitionSpec(), stored_specs(table, layout)),
    )


def _spread_over(table: Any, layout: Layout) -> Any:
    """The mesh axes over which each parameter's gradient is spread: of a split one, not its own."""

    def others(spec: PartitionSpec) -> tuple[str, ...]:
        return tuple(name for name in layout.axes.batch if name not in jax.tree.leaves(tuple(spec)))

    return jax.tree.map(others, rule_specs(table, layout))


def make_train_step(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    accumulate: int = 1,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """A compiled (state, batch) -> (state, metrics); the state given is used up.

    Args:
      model: what is trained.
      optimizer: sees global arrays, so clipping by global norm is right on any mesh; its
        arithmetic is done on shards where its state is in shards.
      layout: the mesh and its uses.
      accumulate: parts of a batch [accumulate, rows, T], whose gradients are averaged.

    Returns:
      A function whose metrics are float32: the scalars loss (nats per token) and grad_norm, and
      what else the model's `objective` is made of.
    """
    table = model.table()
    gradients = make_gradients(model, layout, accumulate)
    stored = shardings(stored_specs(table, layout), layout)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        measures, grads = gradients(state.params, batch, jax.random.fold_in(state.key, state.step))
        params = lax.with_sharding_constraint(state.params, stored)
        updates, opt_state = optimizer.update(grads, state.opt_state, params)
        params = _spread(optax.apply_updates(params, updates), table, layout)
        after = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        norm = optax.tree.norm(trained(optimizer, without_signs(table, grads)))
        return after, {**measures, "grad_norm": norm}

    placed = state_shardings(model, optimizer, layout)
    batches = NamedSharding(layout.mesh, batch_spec(layout, accumulate))
    return jax.jit(
        step, donate_argnums=0, in_shardings=(placed, batches), out_shardings=(placed, None)
    )


def _spread(params: Any, table: Any, layout: Layout) -> Any:
    """Gives every device the parameters that ZeRO stage 1 updated in shards."""
    if layout.shard_axis is None or layout.shards_params:
        return params
    dims = shard_dims(table, layout)

    def gather(params: Params) -> Params:
        def one(x: Array, dim: int) -> Array:
            return collectives.all_gather(x, layout.shard_axis, x.ndim + dim) if dim else x

        return jax.tree.map(one, params, dims)

    specs = stored_specs(table, layout), rule_specs(table, layout)
    return jax.shard_map(gather, mesh=layout.mesh, in_specs=specs[:1], out_specs=specs[1])(params)


def make_eval_step(
    model: LanguageModel, layout: Layout
) -> Callable[[Params, Batch], tuple[Array, Array]]:
    """A compiled (params, batch) -> (mean loss in nats, sum of weights), without dropout."""
    table, axes = model.table(), layout.axes

    def evaluate(params: Params, batch: Batch) -> tuple[Array, Array]:
        if layout.shards_params:
            params = zero.shards(params, shard_dims(table, layout), layout.shard_axis)
        weights = batch["weights"]
        loss = model.loss(params, batch["inputs"], batch["targets"], weights, axes)
        return loss, collectives.psum(jnp.sum(weights), axes.batch)

    specs = param_specs(table, layout), batch_spec(layout)
    sharded = jax.shard_map(
        evaluate,
        mesh=layout.mesh,
        in_specs=specs,
        out_specs=(PartitionSpec(), PartitionSpec()),
    )
    return jax.jit(
        sharded,
        in_shardings=(shardings(specs[0], layout), NamedSharding(layout.mesh, specs[1])),
    )
