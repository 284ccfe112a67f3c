"""A trained model made larger, with the function that it had; its optimizer's moments follow.

Sources: Net2Net (arXiv 1511.05641) and EAS (arXiv 1707.04873), whose copies of units these are. A
block is added as one whose outputs are 0, which a residual stream hands through.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from gam_jax import units
from gam_jax.layers.base import as_usual
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params, abstract_params, path_name
from gam_jax.units import WIDTH, Unit
from sharding.errors import UserError

BLOCKS = "blocks"


@dataclasses.dataclass(frozen=True)
class Step:
    """Units of one kind that are copied.

    Attributes:
      name: of the units, as in the model's `unit_table`.
      unit: where they stand, in the model as it is by then.
      old: how many there were.
      index: the original of each.
    """

    name: str
    unit: Unit
    old: int
    index: np.ndarray


@dataclasses.dataclass(frozen=True)
class Growth:
    """What makes one model another.

    Attributes:
      steps: copies, one kind of units after the other.
      silent: parameters of a block that are 0 in a new one.
      depth: blocks that are added after the last.
      fresh: makes first values of the larger model, from a key.
    """

    steps: tuple[Step, ...]
    silent: tuple[str, ...]
    depth: int
    fresh: Callable[[Array], Params]

    def told(self) -> list[str]:
        """A line for each change."""
        lines = [f"{step.name}: {step.old} -> {len(step.index)}" for step in self.steps]
        return lines + ([f"depth: {self.depth} more blocks"] if self.depth else [])


def growth(old: LanguageModel, new: LanguageModel) -> Growth:
    """How `old` becomes `new`.

    Raises:
      UserError: the function would not stay what it was, or a parameter's shape is another for a
        reason that is no unit's.
    """
    steps, model = [], old
    for name in old.unit_table():  # the width last: the sizes that it decides are pinned by then
        if name != WIDTH:
            model = _copied(model, new, name, steps)
    if new.width != old.width:
        model = _copied(model, new, WIDTH, steps)
    more = new.depth - model.depth
    silent = model.block.silent() if more else ()
    if more < 0:
        raise UserError(
            f"model.depth={new.depth}: blocks are added, and not taken from {old.depth}"
        )
    if more and not silent:
        raise UserError(
            f"model.depth={new.depth}: {type(model.block).__name__} does not say what makes a "
            f"block of it one that changes nothing"
        )
    _check(dataclasses.replace(model, depth=new.depth), new)
    return Growth(tuple(steps), silent, more, new.init_params)


def _copied(
    model: LanguageModel, new: LanguageModel, name: str, steps: list[Step]
) -> LanguageModel:
    """The model with as many units of a kind as the new one has; the step is noted."""
    unit, wanted = model.unit_table().get(name), new.unit_table().get(name)
    if unit is None or wanted is None:
        return model
    before, after = units.count(model.table(), unit), units.count(new.table(), wanted)
    if before == after:
        return model
    if unit.alike and unit.alike * after != wanted.alike * before:
        times = f"{unit.alike} of {before} is not {wanted.alike} of {after}"
        raise UserError(
            f"{name}: copies are chosen together, and {times}: let {unit.alike_name} grow alike"
        )
    try:
        index = units.copies(before, after, unit.within)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    units.check_copies(unit, index, before, name)
    steps.append(Step(name, unit, before, index))
    return units.resized(model, name, after)


def _check(model: LanguageModel, new: LanguageModel) -> None:
    """Refuses a model that copies of units have not become."""
    found, wanted = (
        {
            path_name(path): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(one.table()))
        }
        for one in (model, new)
    )
    for name, shape in wanted.items():
        if found.get(name) != shape:
            raise UserError(
                f"{name} would be {found.get(name, 'nowhere')} and the new model has {shape}: no "
                f"unit covers that. A size that depends on another, as a head's, can be given"
            )
    if gone := [name for name in found if name not in wanted]:
        raise UserError(f"{gone[0]} has no place in the new model")
    ours, theirs = (_alike(one) for one in (model, new))
    if ours != theirs:
        raise UserError(
            "the new model computes something else: change nothing but sizes, as "
            "--config.model.block.ffn.hidden=1024"
        )


def _alike(model: LanguageModel) -> Any:
    """A model's configuration without the sizes that its tables tell, and without what is free."""
    sizes = {
        *("width", "depth", "expansion", "hidden", "heads", "kv_heads", "head_size", "slots"),
        *("key_heads", "key_width", "value_width", "inner", "experts", "shared"),
        *("shared_hidden", "dropout", "param_dtype", "packed"),
    }

    def one(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            own = {f.name: one(getattr(value, f.name)) for f in fields if f.name not in sizes}
            return type(value).__name__, own
        return tuple(map(one, value)) if isinstance(value, tuple) else value

    return one(as_usual(model))


def grown(growth: Growth, params: Params, key: Array, noise: float = 0.0) -> Params:
    """Parameters of the larger model.

    Args:
      growth: see `growth`.
      params: of the smaller one, whole arrays.
      key: of new blocks, and of noise.
      noise: added to what makes a copy, so that copies part: N(0, 1) times so many standard
        deviations of the parameter. 0 keeps the function.
    """
    for number, step in enumerate(growth.steps):
        params = units.copy(params, step.unit, step.index)
        if noise:
            params = _noisy(params, step, noise, jax.random.fold_in(key, number))
    if not growth.depth:
        return params
    fresh = growth.fresh(jax.random.fold_in(key, len(growth.steps)))[BLOCKS]
    fresh = _silenced(fresh, growth.silent)

    def longer(own: Array, new: Array) -> Array:
        return jnp.concatenate([own, new[-growth.depth :].astype(own.dtype)])

    return {**params, BLOCKS: jax.tree.map(longer, params[BLOCKS], fresh)}


def grown_moments(growth: Growth, moments: Params, power: int) -> Params:
    """Averages of gradients (power 1), or of their squares (2), of the larger model.

    Those of new blocks are 0. What the optimizer leaves alone has none, and stays away.
    """
    for step in growth.steps:
        moments = units.copy_moments(moments, step.unit, step.index, power)
    if not growth.depth or BLOCKS not in moments:
        return moments

    def longer(own: Array) -> Array:
        return jnp.concatenate([own, jnp.zeros((growth.depth, *own.shape[1:]), own.dtype)])

    return {**moments, BLOCKS: jax.tree.map(longer, moments[BLOCKS])}


def grown_state(growth: Growth, opt_state: Any) -> Any:
    """The optimizer's state for the larger model.

    Args:
      growth: see `growth`.
      opt_state: of the smaller one, whole arrays, without a master (`master.inner_state`).

    Raises:
      UserError: a state of workers, or of an optimizer that is not known here.
    """
    return changed_state(opt_state, lambda moments, power: grown_moments(growth, moments, power))


def changed_state(opt_state: Any, of_moments: Callable[[Params, int], Params]) -> Any:
    """The optimizer's state of a model of other sizes.

    Args:
      opt_state: whole arrays, without a master (`master.inner_state`).
      of_moments: what becomes of averages of gradients (power 1), or of their squares (2).

    Raises:
      UserError: a state of workers, or of an optimizer that is not known here.
    """
    if isinstance(opt_state, optax.ScaleByAdamState):
        mu, nu = (
            of_moments(moments, power)
            for moments, power in ((_tree(opt_state.mu), 1), (_tree(opt_state.nu), 2))
        )
        return opt_state._replace(mu=mu, nu=nu)
    if isinstance(opt_state, tuple):
        own = [changed_state(each, of_moments) for each in opt_state]
        return type(opt_state)(*own) if hasattr(opt_state, "_fields") else tuple(own)
    if isinstance(opt_state, Mapping) or np.ndim(opt_state):
        raise UserError(f"no rule for an optimizer's {type(opt_state).__name__} of other sizes")
    return opt_state


def _tree(moments: Any) -> Params:
    return moments


def _noisy(params: Params, step: Step, noise: float, key: Array) -> Params:
    """Copies alone are moved; the first of each is the original."""
    new = np.ones(len(step.index), bool)
    new[np.unique(step.index, return_index=True)[1]] = False

    def moved(x: Array, part: units.Part, number: int) -> Array:
        own = noise * jnp.std(x) * jax.random.normal(jax.random.fold_in(key, number), x.shape)
        return x + own.astype(x.dtype) * units.spread(x, part, new)

    for number, part in enumerate(step.unit.makes):
        params = units.changed(params, part, lambda x, p, number=number: moved(x, p, number))
    return params


def _silenced(blocks: Params, silent: tuple[str, ...]) -> Params:
    for name in silent:
        blocks = units.changed(blocks, units.Part(name, 0), lambda x, _: jnp.zeros_like(x))
    return blocks
