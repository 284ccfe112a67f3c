"""A door for Flax users: any layer as a `flax.linen` or an `nnx` module."""

from __future__ import annotations

import functools
from typing import Any

import jax
from flax import linen, nnx
from jaxtyping import Array, Float

from gam_jax.layers import Carry, Layer
from gam_jax.params import Params, Table, init_params


class LinenLayer(linen.Module):
    """A layer as a linen module: `LinenLayer(GAM(width=64))`, then `init` and `apply` as usual.

    Parameters live under the names of the layer's table. Dropout draws from the stream
    "dropout" and is off where none is given.
    """

    layer: Layer

    @linen.compact
    def __call__(
        self, x: Float[Array, "B T D"], carry: Carry | None = None
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """(y, carry after the last token)."""
        table = self.layer.table()
        params = {name: self.param(name, _initializer(part)) for name, part in table.items()}
        key = self.make_rng("dropout") if self.has_rng("dropout") else None
        return self.layer(params, x, carry, key=key)


class NnxLayer(nnx.Module):
    """A layer as an nnx module: `NnxLayer(GAM(width=64), rngs=nnx.Rngs(0))`.

    Each parameter is an `nnx.Param` in `self.params`, in the shape of the layer's table. Dropout
    draws from `rngs.dropout` at call time and is off where no rngs are given.
    """

    def __init__(self, layer: Layer, *, rngs: nnx.Rngs) -> None:
        self.layer = layer
        self.params = nnx.data(jax.tree.map(nnx.Param, _initial(layer, rngs.params())))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        carry: Carry | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "B T D"], Carry]:
        """(y, carry after the last token)."""
        params = jax.tree.map(
            lambda p: p[...], self.params, is_leaf=lambda leaf: isinstance(leaf, nnx.Param)
        )
        return self.layer(params, x, carry, key=None if rngs is None else rngs.dropout())


@functools.partial(jax.jit, static_argnums=0)
def _initial(layer: Layer, key: Array) -> Params:
    return init_params(layer.table(), key)


def _initializer(part: Any) -> Any:
    """A linen initialiser for one entry of a table: a parameter, or a nested table."""

    def init(key: Array) -> Any:
        table: Table = {"it": part}
        return init_params(table, key)["it"]

    return init
