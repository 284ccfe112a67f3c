"""What a layer is."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
from jaxtyping import Array, Float

from gam_jax.params import Params, Table, path_name, zero_shards
from sharding.axes import Axes

Carry = Any
"""A tree of arrays: what a layer hands to the next token, chunk or device; () if nothing."""

WHOLE = Axes()
"""No mesh: every array is whole."""


class Statistics:
    """What a layer counts of the tokens that it sees: a node of its carry, with sums over tokens.

    A model that trains finds these in the carry, wherever the layer is nested. Arrays are
    [..., B, ...]: leading axes are those of stacked layers, which what is returned keeps.
    """

    def report(self, axes: Axes) -> tuple[Float[Array, ""], dict[str, Array]]:
        """What is added to the loss, and what is worth knowing, by name; over all devices.

        Averages over batches of what is worth knowing make sense.
        """
        raise NotImplementedError


def statistics(carry: Carry) -> dict[str, Statistics]:
    """Those in a carry, by their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        carry, is_leaf=lambda node: isinstance(node, Statistics)
    )
    return {path_name(path): leaf for path, leaf in leaves if isinstance(leaf, Statistics)}


class Layer:
    """A frozen dataclass of configuration; its parameters live elsewhere.

    A layer declares its parameters in `table()`, what it carries along a sequence in
    `carry_table(batch)`, and is a pure function of (params, x, carry). The law of the carry: for
    any split of a sequence into chunks, outputs and last carry are those of the whole. The law
    of the mesh: likewise for any split over devices.
    """

    @property
    def causal(self) -> bool:
        """Whether it is causal, with a carry that goes on; if every layer inside does.

        One that does not says so here alone: it takes whole sequences, and has no carry. Models
        that predict the next token, and the laws of the carry, ask this.
        """
        inner = (getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]
        return all(layer.causal for layer in inner if isinstance(layer, Layer))

    def table(self) -> Table:
        """The parameters, see `gam_jax.params`."""
        raise NotImplementedError

    def carry_table(self, batch: int) -> Any:
        """The carry as a table: shapes of whole arrays and their logical axes; () for nothing."""
        return ()

    def carry(self, batch: int, axes: Axes = WHOLE) -> Carry:
        """The carry at the start of a sequence: zeros, this device's part of them.

        Args:
          batch: rows on this device.
          axes: mesh axes, inside `jax.shard_map`.
        """
        return zero_shards(self.carry_table(batch), axes)

    def begun(self, carry: Carry | None, batch: int, axes: Axes = WHOLE) -> Carry:
        """A carry whose every array is there: zeros for what a start has left None."""
        start = self.carry(batch, axes)
        if carry is None:
            return start
        return jax.tree.map(lambda zero, x: zero if x is None else x, start, carry)

    @property
    def limit(self) -> int:
        """The most tokens that a sequence may have, 0 for any: the least of the layers inside."""
        inner = (getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]
        limits = (layer.limit for layer in inner if isinstance(layer, Layer))
        return min((limit for limit in limits if limit), default=0)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Carry | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """(y, carry after the last token). carry=None starts a sequence; key=None: no dropout.

        None is what a start is told by, not zeros: a layer around hands it on, so that one whose
        carry is a cache need not look into an empty one. A start that is learned (`ParScale`) is
        a carry with None for each cache in it.

        Where `axes.residual` is set, x and y hold this device's tokens of the residual stream.
        """
        raise NotImplementedError


LayerType = TypeVar("LayerType")

INHERITED = ("width", "dropout")
"""Fields that an inner layer takes from the layer around it where it leaves them None."""


def inherit(layer: LayerType, **values: Any) -> LayerType:
    """`layer` with each of `values` filled into fields of that name that are None.

    It goes into nested layers, so that a model's width is written once.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(layer):  # type: ignore[arg-type]
        value = getattr(layer, field.name)
        if value is None and field.name in values:
            changes[field.name] = values[field.name]
        elif dataclasses.is_dataclass(value):
            changes[field.name] = inherit(value, **values)
    return dataclasses.replace(layer, **changes) if changes else layer  # type: ignore[type-var]


def known(value: int | None, field: str, layer: object) -> int:
    """`value`, or a ValueError that says which field was never given.

    Raises:
      ValueError: the field is None.
    """
    if value is None:
        raise ValueError(
            f"{type(layer).__name__}.{field} is not set: give it, or hold the layer "
            f"in one that has it"
        )
    return value
