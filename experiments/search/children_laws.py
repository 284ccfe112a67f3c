"""Laws of children and of the program that chooses them, as figures that a study prints."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.search.children import scorer
from gam_jax.blockwise import BLOCKS, Library
from gam_jax.search import Budget, Point, best_sum, by_ratio, layer_by_layer
from sharding.errors import UserError


def identities(library: Library, tokens: np.ndarray) -> dict[str, float]:
    """What must be so of any parent, of one that is not trained.

    Args:
      library: of options.
      tokens: a batch [B, T].

    Returns:
      same: KL of the child that is all the parent's. between: the most that a loss or gradient of
      other blocks changes with the options of block 1. alone: the most that those of all blocks at
      once differ from those of one block by itself.
    """
    model = library.parent
    params = jax.jit(model.init_params)(jax.random.key(0))
    begun = jax.jit(library.begun)(params, tokens, jax.random.key(1))
    given = jax.jit(library.given)(params, tokens)
    same = scorer(library)(begun, tokens[None], (0,) * model.depth)

    def found(own: Any, blocks: Any, given: Any) -> Any:
        def total(own: Any) -> Any:
            losses = library.losses(own, {BLOCKS: blocks}, given)
            return sum(map(jnp.sum, jax.tree.leaves(losses))), losses

        return jax.value_and_grad(total, has_aux=True)(own)

    slopes = jax.jit(found)
    own, blocks = library.trained(begun), params[BLOCKS]
    (_, losses), grads = slopes(own, blocks, given)
    others = np.delete(np.arange(model.depth), 1)
    moved = jax.tree.map(
        lambda x: np.asarray(x) + (np.arange(model.depth) == 1).reshape(-1, *[1] * (x.ndim - 1)),
        own,
    )
    (_, losses_then), grads_then = slopes(moved, blocks, given)
    between = _furthest((losses, grads), (losses_then, grads_then), lambda x: x[others])
    alone = 0.0
    for number in range(model.depth):
        one = jax.tree.map(lambda x, n=number: x[n : n + 1], (own, blocks, given))
        (_, losses_one), grads_one = slopes(*one)
        part = functools.partial(lambda x, n: x[n : n + 1], n=number)
        here = jax.tree.map(part, (losses, grads))
        alone = max(alone, _furthest((losses_one, grads_one), here))
    return {"same": same, "between": between, "alone": alone}


def _furthest(one: Any, other: Any, part: Callable[[Any], Any] = lambda x: x) -> float:
    pairs_of = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(
        (float(np.max(np.abs(part(np.asarray(a)) - part(np.asarray(b))))) for a, b in pairs_of)
    )


def solved(libraries: int) -> dict[str, float]:
    """The integer program beside all points of small libraries under two budgets.

    Args:
      libraries: how many are drawn.

    Returns:
      off: the most that its sum differs from the best of all points. below: how many greedy sums
      are below it.
    """
    off, below = 0.0, 0

    def total(table: Any, point: Point) -> float:
        return sum(own[n] for own, n in zip(table, point, strict=True))

    for number in range(libraries):
        draw = np.random.default_rng(number)
        sizes = draw.integers(2, 5, 5)
        costs, *uses = ([draw.uniform(0, 9, n).tolist() for n in sizes] for _ in range(3))
        some = tuple(int(draw.integers(n)) for n in sizes)  # so that there is a point within both
        budgets = [Budget(use, 1.05 * total(use, some)) for use in uses]
        points = itertools.product(*map(range, sizes))
        held = [p for p in points if all(total(b.uses, p) <= b.limit for b in budgets)]
        least = min(total(costs, point) for point in held)
        off = max(off, abs(best_sum(costs, budgets)[1] - least))
        for rule in (layer_by_layer, by_ratio):
            with contextlib.suppress(UserError):  # it has found nothing within the budgets
                below += total(costs, rule(costs, budgets)) < least - 1e-9
    return {"off": off, "below": float(below)}
