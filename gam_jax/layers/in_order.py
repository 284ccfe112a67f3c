"""Unlike layers one after another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, inherit, told
from gam_jax.nested import with_held
from gam_jax.params import Params, Table
from gam_jax.units import UnitTable, joined, within
from sharding import zero
from sharding.axes import Axes
from sharding.bounds import Rate, Size, check_bounds


class InOrder(Layer):
    """Layers, each of which reads what the one before gives. Each gathers its own parameters."""

    gathers = True
    width: Size | None
    dropout: Rate | None

    def __post_init__(self) -> None:
        check_bounds(self)
        filled = with_held(self, lambda x: inherit(x, width=self.width, dropout=self.dropout))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, field.name, getattr(filled, field.name))

    @property
    def named(self) -> dict[str, Layer]:
        """The layers in order, by the names of their parameters."""
        raise NotImplementedError

    def keys(self, key: Array) -> Sequence[Array]:
        """What each layer draws its randomness from."""
        raise NotImplementedError

    @property
    def loops(self) -> bool:
        """If all of them do."""
        return all(layer.loops for layer in self.named.values())

    def table(self) -> Table:
        """That of each layer, by its name."""
        return {name: layer.table() for name, layer in self.named.items()}

    def unit_table(self) -> UnitTable:
        """Those of each layer; the width where all have it."""
        before = "layers." if hasattr(self, "layers") else ""
        named = self.named.items()
        return joined(*(within(n, 0, each.unit_table(), f"{before}{n}") for n, each in named))

    def carry_table(self, batch: int) -> Any:
        """That of each layer, by its name."""
        return {name: layer.carry_table(batch) for name, layer in self.named.items()}

    def apart(self, carry: Carry, part: Callable[[Any, int], Any]) -> Carry:
        """Of each layer."""
        return {name: layer.apart(carry[name], part) for name, layer in self.named.items()}

    def experts_apart(self, params: Params, take: Callable[[Any, int], Any]) -> Params:
        """Of each layer."""
        return {name: layer.experts_apart(params[name], take) for name, layer in self.named.items()}

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
        """One after the other."""
        after: dict[str, Carry] = {}
        keys = [None] * len(self.named) if key is None else self.keys(key)
        for (name, layer), own in zip(self.named.items(), keys, strict=True):
            whole = gathered(layer, params[name])
            begin = None if carry is None else carry[name]
            x, after[name] = layer(whole, x, begin, axes, key=own, **told(starts))
        return x, after


@dataclasses.dataclass(frozen=True)
class InTurn(InOrder):
    """Any number of layers, such as the blocks of one turn of a `Pattern`.

    Attributes:
      layers: in order.
      width, dropout: given to the layers within where they leave them None.
    """

    layers: tuple[Layer, ...]
    width: Size | None = None
    dropout: Rate | None = None

    @property
    def named(self) -> dict[str, Layer]:
        """Each layer by its number."""
        return {str(i): layer for i, layer in enumerate(self.layers)}

    def keys(self, key: Array) -> Sequence[Array]:
        """fold_in(key, i) for layer i."""
        return [jax.random.fold_in(key, i) for i in range(len(self.layers))]


@dataclasses.dataclass(frozen=True)
class Series(InOrder):
    """Two layers: two stacks of unlike blocks, say. New models have a `Pattern` instead.

    A model whose first blocks have other feed-forwards is
    `LanguageModel(Series(Stack(one, 3), Stack(other, 58)), width, depth=1)`.

    Attributes:
      first: reads the input.
      then: reads what `first` gives.
      width, dropout: given to the layers within where they leave them None.
    """

    first: Layer
    then: Layer
    width: Size | None = None
    dropout: Rate | None = None

    @property
    def named(self) -> dict[str, Layer]:
        """The two."""
        return {"first": self.first, "then": self.then}

    def keys(self, key: Array) -> Sequence[Array]:
        """The two that `key` is split into."""
        return list(jax.random.split(key))


def gathered(layer: Layer, params: Params) -> Params:
    """A layer's parameters, whole, unless layers inside gather their own."""
    return params if layer.gathers else zero.whole(params)
