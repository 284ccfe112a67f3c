"""The layers of a training state as checkpoints have them, and as stages of several turns do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from gam_jax.master import like_params
from gam_jax.models.base import Model, as_read
from gam_jax.params import stacked_mask
from gam_jax.training.state import TrainState, abstract_state, state_shardings
from sharding.host_memory import fetched, returned
from sharding.layout import Layout
from sharding.pipeline import stages

Moved = Callable[[TrainState], TrainState]


def moves(
    model: Model, optimizer: optax.GradientTransformation, layout: Layout
) -> tuple[Moved, Moved]:
    """(state as it is read -> as it is trained, and back). Where both are one, nothing is done.

    Only the order of layers differs, see `sharding.pipeline.stages`: a stage with several turns
    holds chunks that do not follow one another. Where chunks have unlike numbers of layers, each
    has slots for as many as the fullest; zeros stand in those that are empty.
    """
    parts, turns = model.parts(), layout.parallel.turns
    if layout.stages == 1 or parts is None:
        return _as_it_is, _as_it_is
    unlike = layout.layers_of_chunks(parts.depth)
    if turns == 1 and not unlike:
        return _as_it_is, _as_it_is
    stacked = stacked_mask(model.table())
    kept = like_params(
        optimizer, abstract_state(model, optimizer).opt_state, stacked, lambda _: False
    )
    read = state_shardings(model, optimizer, as_read(model, layout))
    placed = state_shardings(model, optimizer, layout)

    def moved(change: Callable[[Array], Array], before: Any, after: Any) -> Moved:
        def move(state: TrainState) -> TrainState:
            def one(x: Any, layers: bool) -> Any:
                return change(x) if layers else x

            params = jax.tree.map(one, state.params, stacked)
            opt_state = fetched(state.opt_state, before.opt_state)
            opt_state = returned(jax.tree.map(one, opt_state, kept), after.opt_state)
            return state.replace(params=params, opt_state=opt_state)

        return jax.jit(move, in_shardings=(before,), out_shardings=after)

    if not unlike:
        there = stages.order(parts.depth, layout.stages, turns)
        back = np.argsort(there)
        return moved(lambda x: x[there], read, placed), moved(lambda x: x[back], placed, read)
    slots, count = stages.slots(unlike, layout.stages), len(unlike) * max(unlike)

    def spread(x: Array) -> Array:
        return jnp.zeros((count, *x.shape[1:]), x.dtype).at[slots].set(x)

    return moved(spread, read, placed), moved(lambda x: x[slots], placed, read)


def _as_it_is(state: TrainState) -> TrainState:
    return state
