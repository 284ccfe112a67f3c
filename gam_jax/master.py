"""Parameters stored in few bits, with a float32 master copy in the optimizer's state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array

from gam_jax.bilevel import LevelState, TwoLevels
from gam_jax.local import LocalState, Workers
from gam_jax.optimizer import trained
from gam_jax.params import FLOAT32, Params, Table, round_to, stored_dtypes, widened


class Mastered(NamedTuple):
    """The optimizer's state of a model whose parameters are not all stored in float32.

    Attributes:
      master: the parameters in float32; None for those that are stored so, and for those that
        the optimizer leaves alone.
      inner: the state of the optimizer, which sees the master.
    """

    master: Any
    inner: Any


def begun(
    optimizer: optax.GradientTransformation, table: Table, wide: Params, inner: Any = None
) -> tuple[Params, Any]:
    """Parameters as they are stored, and the optimizer's state.

    Args:
      optimizer: see `optimizer.make_optimizer`.
      table: of the parameters, with the dtypes in which they are stored.
      wide: their values, float32.
      inner: the state of the optimizer that sees these; None for that before the first step.
    """
    master = _master(optimizer, table, wide)
    inner = optimizer.init(wide) if inner is None else inner
    state = Mastered(master, inner) if jax.tree.leaves(master) else inner
    return round_to(wide, stored_dtypes(table)), state


def _master(optimizer: optax.GradientTransformation, table: Table, wide: Params) -> Any:
    dtypes = stored_dtypes(table)
    moved = _paths(trained(optimizer, dtypes))

    def one(path: Any, value: Array, dtype: str) -> Array | None:
        return value if dtype != FLOAT32 and path in moved else None

    return jax.tree_util.tree_map_with_path(one, wide, dtypes)


def _paths(tree: Any) -> set[Any]:
    return {path for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def values(params: Params, opt_state: Any) -> Params:
    """All parameters in float32: the master where there is one."""
    if not isinstance(opt_state, Mastered):
        return widened(params)
    return jax.tree.map(
        lambda own, value: widened(value) if own is None else own,
        opt_state.master,
        params,
        is_leaf=_is_none,
    )


def inner_state(opt_state: Any) -> Any:
    """The state of the optimizer that sees float32 values, without a master."""
    return opt_state.inner if isinstance(opt_state, Mastered) else opt_state


def first_values(params: Params, opt_state: Any) -> Params:
    """What other first values take the place of: the master where there is one, else as stored."""
    if not isinstance(opt_state, Mastered):
        return params
    return jax.tree.map(
        lambda own, value: value if own is None else own,
        opt_state.master,
        params,
        is_leaf=_is_none,
    )


def put_first(params: Params, opt_state: Any, wide: Params) -> tuple[Params, Any]:
    """Other first values in the place of those of a state before its first step.

    Args:
      params: as stored, on the mesh.
      opt_state: the optimizer's.
      wide: values, anywhere.
    """

    def put(value: Any, like: Array) -> Array:
        value = value.astype(like.dtype)
        if isinstance(value, jax.Array) and value.sharding == like.sharding:
            return value
        return jax.device_put(value, like.sharding, may_alias=False)

    if isinstance(opt_state, Mastered):
        master = jax.tree.map(
            lambda own, value: None if own is None else put(value, own),
            opt_state.master,
            wide,
            is_leaf=_is_none,
        )
        opt_state = opt_state._replace(master=master)
    return jax.tree.map(put, wide, params), opt_state


def updated(
    optimizer: optax.GradientTransformation, grads: Params, opt_state: Any, params: Params
) -> tuple[Params, Any]:
    """Parameters and the optimizer's state after an update.

    Where there is a master it is what moves, and the parameter is its rounding: changes too small
    for the parameter's dtype add up.
    """
    if not isinstance(opt_state, Mastered):
        changes, opt_state = optimizer.update(grads, opt_state, params)
        moved: Any = optax.apply_updates(params, changes)
        return moved, opt_state
    before = values(params, opt_state)
    changes, inner = optimizer.update(grads, opt_state.inner, before)
    after: Any = optax.apply_updates(before, changes)
    master = jax.tree.map(
        lambda own, value: None if own is None else value, opt_state.master, after, is_leaf=_is_none
    )
    dtypes = jax.tree.map(lambda x: x.dtype, params)
    return round_to(after, dtypes), Mastered(master, inner)


def like_params(
    optimizer: optax.GradientTransformation,
    opt_state: Any,
    tree: Any,
    other: Callable[[Any], Any] = lambda leaf: leaf,
    of_workers: Callable[[Any], Any] = lambda entry: entry,
) -> Any:
    """The optimizer's state with the entry of its parameter in the place of each array.

    Args:
      optimizer: see `optimizer.make_optimizer`.
      opt_state: its state, or the shapes of it.
      tree: an entry for each parameter, a sharding for example.
      other: of what belongs to no parameter, as the count of steps.
      of_workers: makes of an entry that of an array which each worker has its own of.
    """
    if isinstance(opt_state, LocalState):
        assert isinstance(optimizer, Workers)
        lifted = jax.tree.map(of_workers, tree)

        def own_other(leaf: Any) -> Any:
            return of_workers(other(leaf))

        return LocalState(
            momentum=None if opt_state.momentum is None else tree,
            sent=None if opt_state.sent is None else lifted,
            inner=like_params(optimizer.own, opt_state.inner, lifted, own_other),
        )
    if isinstance(opt_state, LevelState):
        assert isinstance(optimizer, TwoLevels)
        return LevelState(
            like_params(optimizer.weights, opt_state.weights, tree, other),
            like_params(optimizer.logits, opt_state.logits, tree, other),
        )
    if isinstance(opt_state, Mastered):
        master = jax.tree.map(
            lambda own, entry: None if own is None else entry,
            opt_state.master,
            tree,
            is_leaf=_is_none,
        )
        return Mastered(master, like_params(optimizer, opt_state.inner, tree, other))
    return optax.tree.map_params(
        optimizer,
        lambda _, entry: entry,
        opt_state,
        trained(optimizer, tree),
        transform_non_params=other,
    )


def _is_none(leaf: object) -> bool:
    return leaf is None
