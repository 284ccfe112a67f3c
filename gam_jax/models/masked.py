"""A model some of whose weights are left out, by masks that are trained, saved and split with it.

Source: SuperTickets (arXiv 2207.03677): one threshold for the magnitudes of all masked weights, a
share that grows while the model is trained, and weights that are kept behind their masks.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gam_jax.data.base import Dataset
from gam_jax.layers.base import WHOLE
from gam_jax.models.base import Batch, Measures, Model, check_stages
from gam_jax.params import Param, Params, Table, names_of
from sharding.axes import Axes
from sharding.errors import UserError
from sharding.layout import Layout

MASKS = "masks"
"""Their entry in a table, beside those of the model inside."""
BITS = 31
"""Of the magnitude of a float32, as an integer of the same order."""


@dataclasses.dataclass(frozen=True)
class Masked(Model):
    """The inner model on weights times their masks, one bool a weight.

    Masks begin as true. What is masked has gradient 0 and keeps its stored value, which decay and
    momentum may still move, so that it can come back with another mask. `pruned` sets masks,
    `baked` makes a plain model.

    Attributes:
      inner: any model.
      on: patterns of names, joined by commas, of the inner model's parameters: of those that are
        matrices or convolutions, and neither embedding nor head.
    """

    inner: Model
    on: str = "*"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.inner, Masked):
            raise ValueError("Masked.inner is masked already")

    def table(self) -> Table:
        """The inner model's, and masks: for each chosen parameter a bool in its shape.

        Raises:
          UserError: a pattern that no weight matches.
        """
        table = self.inner.table()
        return {**table, MASKS: _masks(table, self._chosen(table))}

    def _chosen(self, table: Table) -> set[str]:
        weights = [name for name in names_of(table) if _is_weight(_entry(table, name))]
        found: set[str] = set()
        for pattern in (part.strip() for part in self.on.split(",")):
            own = fnmatch.filter(weights, pattern)
            if not own:
                near = difflib.get_close_matches(pattern, weights, 4, 0.3) or weights[:4]
                raise UserError(f"masks on '{pattern}': no weight has such a name, as {near} have")
            found |= set(own)
        return found

    def applied(self, params: Params) -> Params:
        """Weights times their masks, without the masks; of shards this device's part."""
        own = {name: branch for name, branch in params.items() if name != MASKS}
        return _where(params[MASKS], own)

    @property
    def rivals(self) -> tuple[str, ...]:
        """The inner model's."""
        return self.inner.rivals

    @property
    def frozen(self) -> tuple[str, ...]:
        """The inner model's."""
        return self.inner.frozen

    def batch_axes(self) -> dict[str, tuple[str | None, ...]]:
        """The inner model's."""
        return self.inner.batch_axes()

    def objective(
        self, params: Params, batch: Batch, axes: Axes = WHOLE, *, key: Array | None = None
    ) -> tuple[Float[Array, ""], Float[Array, ""] | float, Measures]:
        """The inner model's, on what is not masked."""
        return self.inner.objective(self.applied(params), batch, axes, key=key)

    def count(self, batch: Batch, axes: Axes = WHOLE) -> Float[Array, ""]:
        """The inner model's."""
        return self.inner.count(batch, axes)

    def scored(self, params: Params, batch: Batch, axes: Axes = WHOLE) -> Measures:
        """The inner model's, on what is not masked."""
        return self.inner.scored(self.applied(params), batch, axes)

    def ids(self) -> dict[str, int]:
        """The inner model's."""
        return self.inner.ids()

    def losses(self, params: Params, batch: Batch, axes: Axes = WHOLE) -> Float[Array, ...] | None:
        """The inner model's, on what is not masked."""
        return self.inner.losses(self.applied(params), batch, axes)

    def fitted(self, data: Dataset) -> Masked:
        """With the inner model fitted."""
        return dataclasses.replace(self, inner=self.inner.fitted(data))

    def check_mesh(self, layout: Layout) -> None:
        """As the inner model; and gradients must be split as weights are.

        Raises:
          UserError: gradients that are split further, or weights that are sent in few bits.
        """
        self.inner.check_mesh(layout)
        check_stages(self, layout)
        bits = layout.bits
        if layout.gradient_axes != layout.weight_axes or bits.weights or bits.gradients:
            raise UserError(
                "masks need gradients that are split as the weights are, and neither of them in "
                "few bits: take parallel.preset data, zero1 or fully_sharded, and no parallel.bits"
            )

    def carry_bytes(self, batch: int) -> int | None:
        """The inner model's."""
        return self.inner.carry_bytes(batch)


def _is_weight(param: Param) -> bool:
    return param.decay and not param.sign_step and "vocab" not in param.axes


def _entry(tree: Any, name: str) -> Any:
    for part in name.split("/"):
        tree = tree[part]
    return tree


def _all_true(key: Array, shape: tuple[int, ...]) -> Array:
    return jnp.ones(shape, bool)


def _masks(table: Table, chosen: set[str], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, entry in table.items():
        own = f"{path}/{name}" if path else name
        if isinstance(entry, Mapping):
            if inside := _masks(entry, chosen, own):
                found[name] = inside
        elif own in chosen:
            found[name] = dataclasses.replace(
                entry, init=_all_true, decay=False, dtype="bool", precise=True
            )
    return found


def _where(masks: Any, params: Any) -> Any:
    """Parameters, 0 where a mask is false; those without one as they are."""

    def one(mask: Any, param: Any) -> Any:
        return jax.tree.map(lambda m, x: jnp.where(m, x, jnp.zeros_like(x)), mask, param)

    if not isinstance(params, Mapping):
        return one(masks, params)
    return {
        name: _where(masks[name], branch) if name in masks else branch
        for name, branch in params.items()
    }


def _magnitudes(masks: Any, params: Any) -> list[Int[Array, ...]]:
    """|w| of what has a mask, as int32 of the same order."""
    if not isinstance(masks, Mapping):
        wide = jnp.abs(params.astype(jnp.float32))
        return [lax.bitcast_convert_type(wide, jnp.int32)]
    return [x for name in masks for x in _magnitudes(masks[name], params[name])]


def dropped(count: int, share: float) -> int:
    """floor(share n) of n weights, the share read as the decimal that it is written as."""
    return math.floor(round(share * count, 6))


@jax.jit
def _new_masks(params: Any, drop: Int[Array, ""] | int) -> list[Bool[Array, ...]]:
    found = _magnitudes(params[MASKS], params)

    def narrower(_: int, between: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = between
        middle = low + (high - low) // 2
        below = functools.reduce(jnp.add, [jnp.sum(x <= middle, dtype=jnp.int32) for x in found])
        enough = below >= drop
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    start = jnp.zeros((), jnp.int32), jnp.full((), 2**BITS - 1, jnp.int32)
    threshold = lax.fori_loop(0, BITS + 1, narrower, start)[1]
    return [(x > threshold) | (drop == 0) for x in found]


def pruned(params: Params, share: float) -> Params:
    """Parameters with new masks: the floor(share n) smallest of all n masked weights are left out.

    Weights are ordered by magnitude, whichever are masked now, and one threshold holds for all; of
    equal ones at the threshold all are left out. It is found by bisection over the bits of a
    float32, in sums of whole numbers: no weight leaves its device, and masks are the same, bit for
    bit, on any mesh.

    Args:
      params: of a `Masked` model, anywhere; fewer than 2^31 masked weights.
      share: of the weights, below 1.
    """
    if not 0 <= share < 1:
        raise UserError(f"{share} of the weights cannot be left out: give a share below 1")
    leaves, structure = jax.tree.flatten(params[MASKS])
    total = sum(leaf.size for leaf in leaves)
    found = _new_masks(params, dropped(total, share))
    placed = [
        jax.device_put(x, leaf.sharding) if isinstance(leaf, jax.Array) else x
        for x, leaf in zip(found, leaves, strict=True)
    ]
    return {**params, MASKS: jax.tree.unflatten(structure, placed)}


def baked(model: Masked, params: Params) -> tuple[Model, Params]:
    """The plain model, and its parameters with zeros where they were masked."""
    return model.inner, jax.jit(model.applied)(params)


def share_at(step: int, every: int, most: float, by: float = 0.1) -> float:
    """The share that is left out after a step: one more tenth every so many steps, up to the most.

    Args:
      step: from 1.
      every: steps between two changes.
      most: the last share.
      by: how much is added at each.
    """
    return min(most, round(by * (step // every), 12))
