"""Units: equal parts of an axis, such as hidden units, heads, slots and experts.

A layer says which dimensions of its parameters make a unit and which take what it gives. What can
be done to units is then written once, for parameters and for the optimizer's moments: keep some,
copy them so that the function stays what it was, weigh what they give, and score them.

Sources: Net2Net (Chen et al. 2016, arXiv 1511.05641, section 2.3) for copies; TangleNAS (arXiv
2312.10440) for weights of several sizes in one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, vmap

from gam_jax.params import Params, Table
from sharding.errors import UserError


@dataclasses.dataclass(frozen=True)
class Part:
    """Where units stand in a parameter.

    Attributes:
      name: of the parameter, as "w_in" or "experts/w_in".
      dim: the dimension along which they lie.
      per: consecutive numbers of it that belong to one unit.
    """

    name: str
    dim: int
    per: int = 1


@dataclasses.dataclass(frozen=True)
class Unit:
    """The units of one kind in a layer.

    Attributes:
      makes: what computes a unit; copied as it is.
      takes: what is multiplied by what a unit gives; shared among its copies.
      logits: numbers added to a unit's logit in a softmax; less by log c for each of c copies.
      within: units are taken as that many equal groups of consecutive ones; copies stay in the
        group of their original, and groups stay equal.
      equal: why all units, or all of a group where there are several, must be copied equally
        often; empty where they need not be.
      first: why only the first units may be kept, and none copied; empty where any may.
      fixed: why units cannot be copied; empty where they can.
      unweighed: why what they give cannot be weighed; empty where it can.
      alike: a number of the configuration that must grow as often as the units; 0 for none.
      alike_name: its name.
      lead: leading axes of stacked layers or experts, which may each keep units of their own.
    """

    makes: tuple[Part, ...]
    takes: tuple[Part, ...] = ()
    logits: tuple[Part, ...] = ()
    within: int = 1
    equal: str = ""
    first: str = ""
    fixed: str = ""
    unweighed: str = ""
    alike: int = 0
    alike_name: str = ""
    lead: int = 0

    @property
    def parts(self) -> tuple[Part, ...]:
        """All of them."""
        return (*self.makes, *self.takes, *self.logits)


UnitTable = Mapping[str, Unit]
"""The units of a layer by name: "hidden"; of a layer inside by its field too: "ffn.hidden"."""
WIDTH = "width"
"""The name of the units of the residual stream, which all layers of a model share."""
ALL_CHANNELS = "norms see the whole width"
"""Why channels of the residual stream are copied equally often."""


def count(table: Table, unit: Unit) -> int:
    """How many units a table has."""
    part = unit.parts[0]
    return leaf(table, part.name).shape[part.dim] // part.per


def within(prefix: str, lead: int, units: UnitTable, field: str) -> dict[str, Unit]:
    """The units of a layer as those of the one that holds it.

    Args:
      prefix: of its parameters.
      lead: stacked axes that the holder puts before the layer's own.
      units: the layer's.
      field: of the holder; the width is nobody's alone and keeps its name.
    """

    def moved(part: Part) -> Part:
        name = f"{prefix}/{part.name}" if prefix else part.name
        return dataclasses.replace(part, name=name, dim=part.dim + lead)

    def one(unit: Unit) -> Unit:
        makes, takes, logits = (
            tuple(map(moved, parts)) for parts in (unit.makes, unit.takes, unit.logits)
        )
        return dataclasses.replace(
            unit, makes=makes, takes=takes, logits=logits, lead=unit.lead + lead
        )

    return {
        name if name == WIDTH or not field else f"{field}.{name}": one(unit)
        for name, unit in units.items()
    }


def joined(*inside: UnitTable) -> dict[str, Unit]:
    """The units of layers side by side; those of equal names are one, cut alike everywhere.

    The width is there only where every layer tells of it.
    """
    found: dict[str, Unit] = {}
    for units in inside:
        for name, unit in units.items():
            found[name] = _both(found[name], unit) if name in found else unit
    if not all(WIDTH in units for units in inside):
        found.pop(WIDTH, None)
    return found


def _both(one: Unit, other: Unit) -> Unit:
    reasons = {
        name: getattr(one, name) or getattr(other, name)
        for name in ("equal", "first", "fixed", "unweighed")
    }
    return dataclasses.replace(
        one,
        makes=one.makes + other.makes,
        takes=one.takes + other.takes,
        logits=one.logits + other.logits,
        lead=0,  # their stacks may be of unlike depth
        **reasons,
    )


def resized(config: Any, name: str, size: int) -> Any:
    """A layer or model with so many units of a kind, and all else as it is.

    Args:
      config: the layer or model.
      name: of the units, as in its `unit_table`.
      size: how many.
    """
    field, _, rest = name.partition(".")
    if not rest:
        return config.with_units(name, size)
    inner = getattr(config, field)
    if isinstance(inner, tuple):
        number, _, rest = rest.partition(".")
        each = [*inner]
        each[int(number)] = resized(each[int(number)], rest, size)
        return dataclasses.replace(config, **{field: tuple(each)})
    return dataclasses.replace(config, **{field: resized(inner, rest, size)})


def copies(old: int, new: int, groups: int = 1) -> np.ndarray:
    """Which unit each of `new` units is a copy of, [new]; all as equally often as can be.

    Each group begins with its own units in order. Copies follow, again in order.

    Raises:
      UserError: fewer units, or groups that would not be equal.
    """
    if new < old:
        raise UserError(f"{old} units cannot become {new} by copies: `gam shrink` keeps some")
    if new % groups:
        raise UserError(f"{new} units are not {groups} equal groups")
    return firsts(old, new, groups)


def firsts(old: int, new: int, groups: int = 1) -> np.ndarray:
    """The first `new` of `old` units, of each group as many; beyond its last unit a group begins
    again."""
    size, wanted = old // groups, new // groups
    own = np.arange(wanted) % size
    return (np.arange(groups)[:, None] * size + own).reshape(-1)


def check_copies(unit: Unit, index: np.ndarray, old: int, name: str = "units") -> None:
    """Refuses a map of copies under which the function would change.

    Args:
      unit: what is copied.
      index: the original of each new unit.
      old: how many there were.
      name: for the message.

    Raises:
      UserError: it says why.
    """
    if why := unit.fixed or unit.first:
        raise UserError(f"{name}: cannot be copied, since {why}")
    new, groups = len(index), unit.within
    if new % groups or np.any(index // (old // groups) != np.arange(new) // (new // groups)):
        raise UserError(f"{name}: copies must stay in their group, and {groups} groups equal")
    times = np.bincount(index, minlength=old)
    if np.any(times == 0):
        raise UserError(
            f"{name}: unit {int(np.argmin(times))} has no copy: `gam shrink` keeps some"
        )
    alone = times.reshape(groups, -1)
    if unit.equal and np.any(alone != alone[:, :1]):
        raise UserError(
            f"{name}: {old} cannot become {new}, since {unit.equal}: choose a multiple of {old}"
        )


def keep(params: Params, unit: Unit, index: Any) -> Params:
    """Some units, in the order of `index`: [n], or [*lead, n] for each stacked layer its own.

    Args:
      params: of a layer; or a tree in their shape, such as a moment.
      unit: of the layer.
      index: numbers of units.

    Raises:
      UserError: others than the first, where only these may be kept.
    """
    if unit.first and np.any(np.asarray(index) != np.arange(np.shape(index)[-1])):
        raise UserError(f"only the first units may be kept, since {unit.first}")
    index = jnp.asarray(index)
    return _with(params, unit.parts, lambda x, part: _taken(x, part, index))


def copy(params: Params, unit: Unit, index: np.ndarray) -> Params:
    """Copies of units under which the function of a layer stays what it is.

    Args:
      params: of a layer.
      unit: of the layer.
      index: the original of each new unit, see `copies`.

    Raises:
      UserError: the function would change, see `check_copies`.
    """
    check_copies(unit, np.asarray(index), count(params, unit))
    shares = _shares(index)
    params = keep(params, unit, index)
    params = _scaled(params, unit.takes, shares)
    return _added(params, unit.logits, np.log(shares))


def copy_moments(moments: Params, unit: Unit, index: np.ndarray, power: int = 1) -> Params:
    """Averages of gradients, or of their squares, of what `copy` makes of their parameters.

    The gradient of a copy of what makes a unit is 1/c of its original's, and that of a copy of
    what takes it is its original's.

    Args:
      moments: in the shape of the parameters.
      unit: of the layer.
      index: see `copy`.
      power: 1 for averages of gradients, 2 for those of squares.
    """
    shares = _shares(index) ** power
    return _scaled(keep(moments, unit, index), (*unit.makes, *unit.logits), shares)


def weigh(params: Params, unit: Unit, weights: Any) -> Params:
    """What units give, times a weight each: [n].

    Of weights 0 and 1, it is what keeping those of weight 1 gives. A choice that two layers share
    is weighed once, where it is taken.

    Raises:
      UserError: units that cannot be weighed.
    """
    if why := unit.unweighed:
        raise UserError(f"units cannot be weighed, since {why}")
    weights = jnp.asarray(weights)
    params = _scaled(params, unit.takes, weights)
    return _added(params, unit.logits, jnp.log(weights)) if unit.logits else params


def of_sizes(sizes: Sequence[int], weights: Any, most: int) -> Array:
    """Weights of units [most], from weights of sizes: unit j counts in every size above j."""
    there = jnp.arange(most)[:, None] < jnp.asarray(sizes)
    return there @ jnp.asarray(weights)


def scale(params: Params, unit: Unit) -> Array:
    """How large units are, [*lead, n]: the norm of what makes one times that of what takes it.

    Where nothing takes it but the softmax that it is in, the norm of what makes it.
    """
    made, taken = (_squares(params, unit, parts) for parts in (unit.makes, unit.takes))
    return jnp.sqrt(made if taken is None else made * taken)


def contribution(params: Params, gradients: Params, unit: Unit) -> Array:
    """How much the loss changes without a unit, to first order, [*lead, n].

    The absolute derivative by its weight, which is the sum of parameter times gradient over what
    takes the unit (Molchanov et al. 2019, arXiv 1906.10771); where nothing takes it, over what
    makes it.
    """
    flat: dict[str, Array] = {}
    parts = unit.takes or unit.makes
    for part in parts:
        flat[part.name] = leaf(params, part.name) * leaf(gradients, part.name)
    sums = [_summed(flat[part.name], part, unit.lead) for part in parts]
    return jnp.abs(functools.reduce(jnp.add, sums))


def _squares(params: Params, unit: Unit, parts: tuple[Part, ...]) -> Any:
    found = [_summed(jnp.square(leaf(params, part.name)), part, unit.lead) for part in parts]
    return functools.reduce(jnp.add, found) if found else None


def _summed(x: Array, part: Part, lead: int) -> Array:
    """The sum over all but leading axes and units, [*lead, n]."""
    x = jnp.moveaxis(x, part.dim, lead)
    return jnp.sum(x.reshape(*x.shape[:lead], x.shape[lead] // part.per, -1), axis=-1)


def _shares(index: np.ndarray) -> np.ndarray:
    """1 / c for each copy, [n]."""
    index = np.asarray(index)
    return 1 / np.bincount(index)[index]


def _taken(x: Array, part: Part, index: Array) -> Array:
    wide = (index[..., None] * part.per + jnp.arange(part.per)).reshape(*index.shape[:-1], -1)
    lead = index.ndim - 1

    def take(x: Array, index: Array) -> Array:
        return jnp.take(x, index, axis=part.dim - lead)

    for _ in range(lead):
        take = vmap(take)
    return take(x, wide)


def spread(x: Array, part: Part, values: Any) -> Array:
    """Values of units [n] in the shape in which they meet x along a part."""
    wide = jnp.repeat(jnp.asarray(values, x.dtype), part.per)
    return wide.reshape(-1, *(1,) * (x.ndim - part.dim - 1))


def _scaled(params: Params, parts: tuple[Part, ...], values: Any) -> Params:
    return _with(params, parts, lambda x, part: x * spread(x, part, values))


def _added(params: Params, parts: tuple[Part, ...], values: Any) -> Params:
    return _with(params, parts, lambda x, part: x + spread(x, part, values))


def _with(
    params: Params, parts: tuple[Part, ...], change: Callable[[Array, Part], Array]
) -> Params:
    """Parameters in which each part is changed, one after the other."""
    for part in parts:
        params = changed(params, part, change)
    return params


def changed(params: Params, part: Part, change: Callable[[Array, Part], Array]) -> Params:
    """Parameters with a part changed; as they are where they do not hold it.

    A tree of what an optimizer trains holds a part of the parameters alone.
    """
    return _put(params, part.name.split("/"), lambda x: change(x, part))


def _put(params: Params, path: list[str], change: Callable[[Array], Array]) -> Params:
    name, *rest = path
    if name not in params:
        return params
    inner = params[name]
    return {**params, name: _put(inner, rest, change) if rest else change(inner)}


def leaf(tree: Any, name: str) -> Any:
    """The entry of that name in nested dicts."""
    for step in name.split("/"):
        tree = tree[step]
    return tree
