"""A trained model made narrower: some of its units are kept, the others taken away.

The units that matter are those that are large, or those without which the loss would change most to
first order (Molchanov et al. 2019, arXiv 1906.10771). The function does not stay what it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from gam_jax import units
from gam_jax.grow import changed_state
from gam_jax.models.language import LanguageModel
from gam_jax.params import Params, abstract_params
from gam_jax.units import WIDTH, Unit
from sharding.errors import UserError

Scores = Callable[[Params, Unit], Any]
"""(parameters, unit) -> how much each unit matters, [*lead, n]."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """Units of one kind that are kept.

    Attributes:
      name: of the units, as in the model's `unit_table`.
      unit: where they stand.
      old: how many there were.
      index: their numbers in order, [n]; of stacked layers of each, [*lead, n].
    """

    name: str
    unit: Unit
    old: int
    index: np.ndarray


@dataclasses.dataclass(frozen=True)
class Shrinking:
    """What makes one model a narrower one.

    Attributes:
      model: the narrower one.
      steps: what is kept, one kind of units after the other.
    """

    model: LanguageModel
    steps: tuple[Kept, ...]

    def told(self) -> list[str]:
        """A line for each change."""
        lines = []
        for step in self.steps:
            line = f"{step.name}: {step.old} -> {step.index.shape[-1]}"
            if step.unit.alike:
                chosen = self.model.unit_table()[step.name].alike
                line += f", {step.unit.alike_name}: {step.unit.alike} -> {chosen}"
            lines.append(line + (f", the first, since {step.unit.first}" * bool(step.unit.first)))
        return lines

    def params(self, tree: Params) -> Params:
        """The narrower model's parameters, or moments, of the wider one's."""
        for step in self.steps:
            tree = units.keep(tree, step.unit, step.index)
        return tree

    def state(self, opt_state: Any) -> Any:
        """The optimizer's state, without a master: averages of what is kept.

        Raises:
          UserError: see `grow.changed_state`.
        """
        return changed_state(opt_state, lambda tree, _: self.params(tree))


def asked(keep: str, model: LanguageModel) -> dict[str, float]:
    """Units and their shares, of words as "ffn:0.5,mixer.slots:0.25".

    A name is that of units or a part of it: "ffn", "ffn.hidden" and "block.ffn.hidden" are one
    where a feed-forward layer has no other units.

    Raises:
      UserError: a word that is none, a share outside 0 to 1, a name of no units or of several.
    """
    names = [name for name in model.unit_table() if name != WIDTH]
    found: dict[str, float] = {}
    for word in keep.split(","):
        name, _, share = word.strip().partition(":")
        try:
            value = float(share)
        except ValueError:
            value = 0.0
        if not name or not 0 < value < 1:
            raise UserError(f"--keep={keep}: write units and a share below 1, as ffn:0.5")
        if name == WIDTH:
            raise UserError(
                "--keep=width: channels of the residual stream are not taken away, since "
                "norms see the whole width"
            )
        if not names:
            kind = type(model.block).__name__
            raise UserError(f"--keep={keep}: blocks of {kind} tell of no units that can be kept")
        own = [each for each in names if f".{name}." in f".{each}."]
        if len(own) != 1:
            told = ", ".join(own or names)
            which = "several units" if own else "no units"
            raise UserError(f"--keep={word.strip()} names {which}: give one of {told}")
        if own[0] in found:
            raise UserError(f"--keep={keep}: {own[0]} is there twice")
        found[own[0]] = value
    return found


def shrinking(
    model: LanguageModel, params: Params, shares: Mapping[str, float], scores: Scores
) -> Shrinking:
    """Which units are kept: of each group, and of each layer, those that score most.

    Args:
      model: the wider one.
      params: its own, whole arrays.
      shares: of units by name, see `asked`.
      scores: of the wider model's units.

    Raises:
      UserError: fewer than one unit of a group, a model that cannot have so many, units that lie
        along the same axis as others of `shares`, or scores that are no numbers.
    """
    steps, table = [], model.table()
    taken: dict[tuple[str, int], str] = {}
    for name, share in shares.items():
        unit = model.unit_table()[name]
        for part in unit.parts:
            other = taken.setdefault((part.name, part.dim), name)
            if other != name:
                raise UserError(
                    f"{other} and {name} are both parts of {part.name}: keep some of the one "
                    f"first, and of the other in the run that this makes"
                )
        old, groups = units.count(table, unit), unit.within
        each = round(share * old / groups)
        if not 1 <= each < old // groups:
            raise UserError(f"{name}: {share:g} of {old} in {groups} groups leaves {each * groups}")
        own = np.asarray(scores(params, unit))
        if not np.isfinite(own).all():
            raise UserError(f"{name}: not all of its scores are finite: try the other --by")
        index = np.sort(_best(own, groups, each), axis=-1)
        if unit.first:
            index = np.broadcast_to(units.firsts(old, each * groups, groups), index.shape)
        steps.append(Kept(name, unit, old, index))
    narrower = model
    for step in steps:
        try:
            narrower = units.resized(narrower, step.name, step.index.shape[-1])
        except ValueError as error:
            raise UserError(f"{step.name}: {step.index.shape[-1]} cannot be: {error}") from error
    found = Shrinking(narrower, tuple(steps))
    shapes = jax.tree.map(np.shape, jax.eval_shape(found.params, params))
    if shapes != jax.tree.map(np.shape, abstract_params(narrower.table())):
        raise UserError(
            f"{', '.join(shares)}: a size of the model depends on another there: give it first"
        )
    return found


def _best(scores: np.ndarray, groups: int, each: int) -> np.ndarray:
    """Numbers of the units that score most, of each group as many; earlier ones of equal score."""
    size = scores.shape[-1] // groups
    parts = scores.reshape(*scores.shape[:-1], groups, size)
    order = np.argsort(-parts, axis=-1, kind="stable")[..., :each]
    return (order + np.arange(groups)[:, None] * size).reshape(*scores.shape[:-1], -1)
