"""Updates of matrices made orthogonal, of everything else Adam's."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from gam_jax.params import Param, Table

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
ADAM_SIZE = 0.2
"""Root mean square of an update, in units of the rate: about what Adam's updates have."""

Sides = tuple[tuple[int, ...], tuple[int, ...]]
"""Dimensions of a parameter that are a matrix's rows, and those that are its columns."""


def matrix_sides(param: Param) -> Sides | None:
    """How a parameter is a matrix from or to the residual stream; None where it is none.

    One side is the axis `embed`. The other is all further axes that have a name, each with the
    unnamed ones that follow it: heads and their channels. An unnamed axis that follows `embed`
    counts matrices, as layers, streams and experts do, but for the last where there is no other.
    Embeddings, whose rows are looked up, are no matrices.
    """
    rows = tuple(dim for dim, name in enumerate(param.axes) if name == "embed")
    columns: list[int] = []
    for dim, name in enumerate(param.axes):
        named = name not in ("embed", "layer", "stream", "expert", None)
        if named or (name is None and dim - 1 in columns):
            columns.append(dim)
    if not columns and param.axes[-1] is None and len(param.shape) > 1:
        columns.append(len(param.shape) - 1)
    embeds = {"vocab", "position"} & set(param.axes)
    return None if embeds or not rows or not columns else (rows, tuple(columns))


def scale_by_muon(
    table: Table, momentum: float, beta1: float, beta2: float, eps: float
) -> optax.GradientTransformation:
    """Muon for the matrices of a table, Adam for the rest.

    A matrix is given the orthogonal matrix nearest to its momentum (Nesterov's), found by five
    rounds of a polynomial, times 0.2 sqrt(the longer side): so its root mean square is about that
    of Adam's update.

    Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the
    scale is that of Liu et al. 2025 (arXiv 2502.16982), section 2.2.

    Args:
      table: of the parameters.
      momentum: of matrices.
      beta1: Adam's decay of the first moment.
      beta2: Adam's decay of the second moment.
      eps: Adam's, added to the root of the second moment.
    """
    adam, sides = optax.scale_by_adam(beta1, beta2, eps), _sides(table)

    def means(grads: Any, before: Any, after: Any) -> Any:
        """The momentum of matrices; Adam's first moment of the rest."""

        def mean(grad: Array, old: Array, new: Array, own: Sides | None) -> Array:
            return new if own is None else momentum * old + (1 - momentum) * grad

        return jax.tree.map(mean, grads, before, after, sides)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        by_adam, found = adam.update(updates, state, params)
        after: Any = found
        after = after._replace(mu=means(updates, state.mu, after.mu))

        def one(by_adam: Array, grad: Array, mean: Array, own: Sides | None) -> Array:
            if own is None:
                return by_adam
            return _orthogonal(momentum * mean + (1 - momentum) * grad, own)

        return jax.tree.map(one, by_adam, updates, after.mu, sides), after

    return optax.GradientTransformation(adam.init, update)


def scale_matrices(table: Table, factor: float) -> optax.GradientTransformation:
    """Multiplies the updates of a table's matrices."""
    sides = _sides(table)

    def scale(updates: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda x, own: x if own is None else factor * x, updates, sides)

    return optax.stateless(scale)


def _sides(table: Table) -> Any:
    return jax.tree.map(matrix_sides, table, is_leaf=lambda leaf: isinstance(leaf, Param))


def _orthogonal(x: Array, sides: Sides) -> Array:
    """`orthogonalised` over the sides of a parameter."""
    rows, columns = sides
    others = tuple(dim for dim in range(x.ndim) if dim not in rows + columns)
    order = others + rows + columns
    moved = jnp.transpose(x, order)
    shape = [math.prod(x.shape[dim] for dim in side) for side in (others, rows, columns)]
    found = orthogonalised(moved.reshape(shape)) * (ADAM_SIZE * math.sqrt(max(shape[1:])))
    back = sorted(range(x.ndim), key=order.__getitem__)
    return jnp.transpose(found.reshape(moved.shape), back)


def orthogonalised(x: Float[Array, "N R C"]) -> Float[Array, "N R C"]:
    """About U V^T of each matrix's singular value decomposition U S V^T.

    Singular values go through an odd polynomial that takes those above about 0.01 of the whole to
    between 0.7 and 1.2, which is as near to 1 as an update needs.
    """
    if x.shape[1] > x.shape[2]:
        return jnp.swapaxes(orthogonalised(jnp.swapaxes(x, 1, 2)), 1, 2)
    a, b, c = COEFFICIENTS
    x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ jnp.swapaxes(x, 1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
