"""A layer of several sizes in one: weights of sizes that hold one another."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool, Float

from gam_jax import units
from gam_jax.layers.base import WHOLE, Carry, Layer, inherit, told
from gam_jax.layers.mixed import LOGITS_STD
from gam_jax.ops import choices
from gam_jax.ops.choices import ARCHITECTURE
from gam_jax.params import Param, Params, Table, normal
from gam_jax.units import Unit
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Positive, Rate, Size, check_bounds


@dataclasses.dataclass(frozen=True)
class Nested(Layer):
    """The inner layer, what each of its units gives weighed by the sizes that hold the unit.

    Of sizes n_1 < ... < n_k, all of which are first units of one layer, unit j has the weight
    sum of w_i over n_i > j, with weights w of the logits. Since units' outputs are summed, that is
    sum_i w_i o_i(x) of all sizes in one pass, whatever k (TangleNAS, arXiv 2312.10440, section 3).

    Without a key nothing is drawn: drawn weights are then those of the likeliest size alone.

    Attributes:
      inner: the layer of the largest size.
      unit: which units, a name of its `unit_table`: "hidden".
      sizes: how many, ascending; the last one is that of `inner`.
      weights: "dirichlet", "sparsemax", "softmax" or "gumbel", see `ops.choices`.
      temperature: that logits are divided by.
      width, dropout: given to the layer inside where it leaves them None.
    """

    inner: Layer
    unit: str
    sizes: tuple[Size, ...]
    weights: str = "dirichlet"
    temperature: Positive = 1.0
    width: Size | None = None
    dropout: Rate | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.weights not in choices.WEIGHTS:
            raise ValueError(
                f"Nested.weights '{self.weights}' is not one of {', '.join(choices.WEIGHTS)}"
            )
        if not self.sizes or tuple(sorted({*self.sizes})) != self.sizes:
            raise ValueError(f"Nested.sizes={self.sizes} must ascend")
        inner = inherit(self.inner, width=self.width, dropout=self.dropout)
        object.__setattr__(self, "inner", inner)
        if self.width is not None:
            self._check()

    def _check(self) -> None:
        kind, found = type(self.inner).__name__, self.inner.unit_table()
        if self.unit not in found:
            raise ValueError(f"Nested.unit '{self.unit}' is none of a {kind}: {', '.join(found)}")
        unit = found[self.unit]
        why = unit.unweighed or ("" if unit.takes and not unit.logits else "a softmax weighs them")
        if unit.within > 1:
            why = f"they are of {unit.within} groups"
        if why:
            raise ValueError(f"Nested.unit '{self.unit}' of a {kind} is not weighed, since {why}")
        most = units.count(self.inner.table(), unit)
        if self.sizes[-1] != most:
            raise ValueError(f"Nested.sizes={self.sizes} must end with {most}, that of the inner")
        if ARCHITECTURE in self.inner.table():
            raise ValueError(f"Nested.inner has parameters of the name {ARCHITECTURE}")

    @property
    def own(self) -> Unit:
        """Where its units stand."""
        return self.inner.unit_table()[self.unit]

    def table(self) -> Table:
        """The inner layer's, and architecture: logits [k]."""
        self._check()
        logits = Param((len(self.sizes),), (None,), normal(LOGITS_STD), decay=False, precise=True)
        return {**self.inner.table(), ARCHITECTURE: {"logits": logits}}

    def silent(self) -> tuple[str, ...]:
        """The inner layer's."""
        return self.inner.silent()

    def carry_table(self, batch: int) -> Any:
        """The inner layer's."""
        return self.inner.carry_table(batch)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Carry | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
        starts: Bool[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """The inner layer on weighed parameters: this device's part of each."""
        logits = choices.wide(params[ARCHITECTURE]["logits"])
        drawing, inner = (None, None) if key is None else jax.random.split(key)
        if self.weights in choices.DRAWN and drawing is None:
            weights = jax.nn.one_hot(logits.argmax(), len(self.sizes), dtype=logits.dtype)
        else:
            weights = choices.WEIGHTS[self.weights](logits, drawing, self.temperature)
        values = units.of_sizes(self.sizes, weights, self.sizes[-1])
        table: Any = self.inner.table()
        own = {name: branch for name, branch in params.items() if name != ARCHITECTURE}
        for part in self.own.takes:
            param = units.leaf(table, part.name)
            axis = param.axes[part.dim]
            mine = collectives.own_shard(values, axes.of(axis) if axis else None, 0)

            def weighed(x: Array, part: units.Part, mine: Array = mine) -> Array:
                return x * units.spread(x, part, mine)

            own = units.changed(own, part, weighed)
        return self.inner(own, x, carry, axes, key=inner, **told(starts))
