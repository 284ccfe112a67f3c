"""Steps of a game of two sides: one moves first, and the other sees it moved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from gam_jax.master import like_params
from gam_jax.params import Params
from sharding.errors import UserError

Gradients = Callable[[Params], tuple[dict[str, Array], Params]]
"""Parameters to (measures, gradients)."""
Update = Callable[[Params, Any, Params], tuple[Params, Any]]
"""(gradients, the optimizer's state, parameters) to parameters and state after an update."""


class Moved(NamedTuple):
    """What a step of both sides gives.

    Attributes:
      measures: as the second side saw them.
      grads: by which each parameter was moved.
      params: after both.
      opt_state: after both.
    """

    measures: dict[str, Array]
    grads: Params
    params: Params
    opt_state: Any


def in_turn(
    gradients: Gradients,
    update: Update,
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Any,
    rivals: tuple[str, ...],
) -> Moved:
    """Moves `rivals`, takes the gradients anew, and moves all others.

    Each side is moved as if the other's gradients were zero: a clipped norm is that of its own.
    Both count one step of the optimizer.

    Args:
      gradients: at some parameters.
      update: by gradients.
      optimizer: whose update it is, of all parameters.
      params: before the step.
      opt_state: the optimizer's.
      rivals: first parts of names.

    Raises:
      UserError: a name that no parameter has, or nobody to move after them.
    """
    if not set(rivals) < params.keys():
        raise UserError(
            f"rivals {', '.join(rivals)}: they must be some of the parameters, and not all: "
            f"{', '.join(params)}"
        )
    first = _named(params, rivals)
    _, grads = gradients(params)
    grads = _chosen(first, grads, jax.tree.map(jnp.zeros_like, grads))
    moved, moved_state = update(grads, opt_state, params)
    params = _chosen(first, moved, params)
    measures, later = gradients(params)
    later = _chosen(first, jax.tree.map(jnp.zeros_like, later), later)
    after, after_state = update(later, opt_state, params)
    whose = like_params(optimizer, opt_state, first, lambda _: False)
    return Moved(
        measures,
        _chosen(first, grads, later),
        _chosen(first, params, after),
        _chosen(whose, moved_state, after_state),
    )


def _named(params: Params, rivals: tuple[str, ...]) -> Any:
    """For each parameter whether it is one of the rivals'."""

    def alike(tree: Any, value: bool) -> Any:
        if isinstance(tree, Mapping):
            return {name: alike(branch, value) for name, branch in tree.items()}
        return value

    return {name: alike(branch, name in rivals) for name, branch in params.items()}


def _chosen(mask: Any, first: Any, second: Any) -> Any:
    return jax.tree.map(lambda own, a, b: a if own else b, mask, first, second)
