"""The training state and the compiled steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from gam_jax.model import LanguageModel
from gam_jax.params import Params, param_shardings, param_specs
from sharding import collectives
from sharding.axes import axes_of
from sharding.rules import DEFAULT_RULES, Rules

Batch = Mapping[str, Any]
"""inputs and targets, int32 [B, T]; weights, float32 [B, T]."""


def batch_spec(mesh: Mesh) -> PartitionSpec:
    """How a batch lies on a mesh: rows over `data`, tokens over `seq`."""
    axes = axes_of(mesh)
    return PartitionSpec(axes.data, axes.seq)


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
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    rules: Rules = DEFAULT_RULES,
) -> Any:
    """A NamedSharding for every leaf of a TrainState: moments lie as their parameters do."""
    params = param_shardings(model.table(), mesh, rules)
    whole = NamedSharding(mesh, PartitionSpec())
    abstract = abstract_state(model, optimizer)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract.opt_state,
        params,
        transform_non_params=lambda _: whole,
    )
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
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    rules: Rules = DEFAULT_RULES,
) -> TrainState:
    """`new_state` placed on the mesh."""
    shardings = state_shardings(model, optimizer, mesh, rules)
    init = jax.jit(lambda key: new_state(model, optimizer, key), out_shardings=shardings)
    return init(jax.random.key(seed))


def make_train_step(
    model: LanguageModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    accumulate: int = 1,
    rules: Rules = DEFAULT_RULES,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """A compiled (state, batch) -> (state, metrics); the state given is used up.

    Args:
      model: what is trained.
      optimizer: sees global arrays, so clipping by global norm is right on any mesh.
      mesh: the mesh of (data, seq, tensor).
      accumulate: the batch is taken in that many parts, whose gradients are averaged.
      rules: logical axes -> mesh axes.

    Returns:
      A function whose metrics are float32 scalars: loss (nats per token) and grad_norm.
    """
    specs, axes = param_specs(model.table(), mesh, rules), axes_of(mesh)

    def gradients(params: Params, batch: Batch, key: Array) -> tuple[Array, Params]:
        def loss(params: Params, part: Batch, key: Array) -> Array:
            return model.loss(
                params, part["inputs"], part["targets"], part["weights"], axes, key=key
            )

        if accumulate == 1:
            return jax.value_and_grad(loss)(params, batch, key)
        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), dict(batch))

        def add(total: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
            found = jax.value_and_grad(loss)(params, part[0], jax.random.fold_in(key, part[1]))
            return jax.tree.map(jnp.add, total, found), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = lax.scan(add, zero, (parts, jnp.arange(accumulate)))
        return jax.tree.map(lambda x: x / accumulate, total)

    sharded = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(specs, batch_spec(mesh), PartitionSpec()),
        out_specs=(PartitionSpec(), specs),
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        loss, grads = sharded(state.params, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        after = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return after, {"loss": loss, "grad_norm": optax.tree.norm(grads)}

    shardings = state_shardings(model, optimizer, mesh, rules)
    batches = NamedSharding(mesh, batch_spec(mesh))
    return jax.jit(
        step, donate_argnums=0, in_shardings=(shardings, batches), out_shardings=(shardings, None)
    )


def make_eval_step(
    model: LanguageModel, mesh: Mesh, rules: Rules = DEFAULT_RULES
) -> Callable[[Params, Batch], tuple[Array, Array]]:
    """A compiled (params, batch) -> (mean loss in nats, sum of weights), without dropout."""

    axes = axes_of(mesh)

    def evaluate(params: Params, batch: Batch) -> tuple[Array, Array]:
        weights = batch["weights"]
        loss = model.loss(params, batch["inputs"], batch["targets"], weights, axes)
        return loss, collectives.psum(jnp.sum(weights), axes.batch)

    sharded = jax.shard_map(
        evaluate,
        mesh=mesh,
        in_specs=(param_specs(model.table(), mesh, rules), batch_spec(mesh)),
        out_specs=(PartitionSpec(), PartitionSpec()),
    )
    shardings = param_shardings(model.table(), mesh, rules)
    return jax.jit(sharded, in_shardings=(shardings, NamedSharding(mesh, batch_spec(mesh))))
