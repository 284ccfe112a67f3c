"""The layers of a training state as checkpoints have them, and as stages of several turns do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from gam_jax.master import like_params
from gam_jax.models.base import Model
from gam_jax.params import stacked_mask
from gam_jax.training.step import TrainState, abstract_state, state_shardings
from sharding.layout import Layout
from sharding.pipeline import stages

Moved = Callable[[TrainState], TrainState]


def moves(
    model: Model, optimizer: optax.GradientTransformation, layout: Layout
) -> tuple[Moved, Moved]:
    """(state as it is read -> as it is trained, and back). Where both are one, nothing is done.

    Only the order of layers differs, see `sharding.pipeline.stages.order`: a stage with several
    turns holds chunks that do not follow one another.
    """
    parts, turns = model.parts(), layout.parallel.turns
    if layout.stages == 1 or turns == 1 or parts is None:
        return (lambda state: state), (lambda state: state)
    abstract = abstract_state(model, optimizer)
    stacked = stacked_mask(model.table())
    kept = like_params(optimizer, abstract.opt_state, stacked, lambda _: False)
    placed = state_shardings(model, optimizer, layout)
    there = stages.order(parts.depth, layout.stages, turns)

    def moved(places: np.ndarray) -> Moved:
        def move(state: TrainState) -> TrainState:
            def one(x: Any, layers: bool) -> Any:
                return x[places] if layers else x

            params = jax.tree.map(one, state.params, stacked)
            return state.replace(params=params, opt_state=jax.tree.map(one, state.opt_state, kept))

        return jax.jit(move, in_shardings=(placed,), out_shardings=placed)

    return moved(there), moved(np.argsort(there))
