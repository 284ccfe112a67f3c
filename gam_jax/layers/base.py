"""What a layer is."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Array, Float

from gam_jax.params import Params, Table
from sharding.axes import Axes

Carry = Any
"""A tree of arrays: what a layer hands to the next token, chunk or device; () if nothing."""

WHOLE = Axes()
"""No mesh: every array is whole."""


@runtime_checkable
class Layer(Protocol):
    """A frozen dataclass of configuration; its parameters live elsewhere.

    A layer declares its parameters in `table()`, the start of a sequence in `carry(batch)`, and
    is a pure function of (params, x, carry). The law of the carry: for any split of a sequence
    into chunks, outputs and last carry are those of the whole.
    """

    def table(self) -> Table:
        """The parameters, see `gam_jax.params`."""
        ...

    def carry(self, batch: int, axes: Axes = WHOLE) -> Carry:
        """The float32 carry at the start of a sequence (this device's part of it)."""
        ...

    def __call__(
        self,
        params: Params,
        x: Float[Array, "B T D"],
        carry: Carry | None = None,
        axes: Axes = WHOLE,
        *,
        key: Array | None = None,
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """(y, carry after the last token). carry=None starts a sequence; key=None: no dropout."""
        ...


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
