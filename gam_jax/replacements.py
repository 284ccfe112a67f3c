"""What may stand in the place of a trained model's layer, and how it starts from that layer.

Source: Puzzle (arXiv 2411.19146), section 2 and appendix on initialisation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gam_jax import units
from gam_jax.layers import MLP, Attention, Layer, Linear, NoOp
from gam_jax.params import Params, init_params
from sharding.errors import UserError

L = TypeVar("L", bound=Layer)

Start = Callable[[Layer, Params, Array, Array], Params]
"""(the parent's layer, its parameters, what it is given [B, T, D], a key) -> an option's
parameters."""


@dataclasses.dataclass(frozen=True)
class Option:
    """What may stand in a layer's place.

    Attributes:
      name: as tables show it.
      layer: the layer; it has the parent's width.
      start: makes its first parameters; None draws new ones.
    """

    name: str
    layer: Layer
    start: Start | None = None

    def begun(self, layer: Layer, parent: Layer, params: Params, x: Array, key: Array) -> Params:
        """Its first parameters.

        Args:
          layer: its own, with the parent's width.
          parent: the parent's layer.
          params: the parent's.
          x: what the parent's layer is given [B, T, D].
          key: of what is drawn.
        """
        if self.start is None:
            return init_params(layer.table(), key)
        return self.start(parent, params, x, key)


def _of(parent: Layer, kind: type[L]) -> L:
    """The parent's layer, of that class."""
    if not isinstance(parent, kind):
        raise UserError(
            f"this option starts from the weights of {kind.__name__}, not of "
            f"{type(parent).__name__}: give it another start, or None for new weights"
        )
    return parent


def pooled(groups: int) -> Start:
    """Attention with fewer heads of keys and values: each the mean of those that it replaces."""

    def start(parent: Layer, params: Params, x: Array, key: Array) -> Params:
        parent = _of(parent, Attention)
        if parent.groups % groups or parent.bias or parent.qk_norm:
            raise UserError(
                f"{parent.groups} heads of keys are not shared out by {groups}, or they have "
                f"biases or norms, which have no mean"
            )

        def mean(weight: Array) -> Array:
            width, _, size = weight.shape
            return jnp.mean(weight.reshape(width, groups, -1, size), axis=2)

        return {**params, **{name: mean(params[name]) for name in ("key", "value")}}

    return start


def as_linear_attention(parent: Layer, params: Params, x: Array, key: Array) -> Params:
    """A `Linear` as attention to the token itself alone, without gate and biases: W_value W_out."""
    _of(parent, Attention)
    value, out = params["value"], params["out"]
    value = jnp.repeat(value, out.shape[0] // value.shape[1], axis=1)
    return {"weight": jnp.einsum("dhk,hke->de", value, out)}


def as_linear_mlp(parent: Layer, params: Params, x: Array, key: Array) -> Params:
    """A `Linear` as a feed-forward without its activation, gate and biases: W_in W_out, scaled."""
    return {"weight": _of(parent, MLP).out_scale * (params["w_in"] @ params["w_out"].T)}


def contributions(mlp: MLP, params: Params, x: Float[Array, "B T D"]) -> Float[Array, " F"]:
    """How much each hidden unit moves the output: the mean over tokens of |u_c| times |W_out c|.

    That is the mean length of what the output changes by when unit c is taken away.

    Args:
      mlp: the layer.
      params: its own.
      x: what it is given.
    """
    inward = {name: p for name, p in params.items() if not name.endswith("_out")}
    hidden = jnp.abs(mlp.units(inward, x.reshape(-1, x.shape[-1])))
    length = jnp.sqrt(jnp.sum(jnp.square(params["w_out"]), axis=0))
    return abs(mlp.out_scale) * jnp.mean(hidden, axis=0) * length


def narrowed(hidden: int) -> Start:
    """A feed-forward with the hidden units of the largest `contributions`, in their order."""

    def start(parent: Layer, params: Params, x: Array, key: Array) -> Params:
        parent = _of(parent, MLP)
        best = jax.lax.top_k(contributions(parent, params, x), hidden)[1]
        return units.keep(params, parent.unit_table()["hidden"], jnp.sort(best))

    return start


def grouped(attention: Attention, groups: int) -> Option:
    """Attention with so many heads of keys and values."""
    layer = dataclasses.replace(attention, kv_heads=groups, head_size=attention.size)
    return Option(f"{groups} key heads", layer, pooled(groups))


def narrower(mlp: MLP, hidden: int) -> Option:
    """A feed-forward of so many hidden units."""
    return Option(f"{hidden} hidden units", mlp.with_units("hidden", hidden), narrowed(hidden))


LINEAR_MIXER = Option("linear", Linear(), as_linear_attention)
LINEAR_FFN = Option("linear", Linear(), as_linear_mlp)
NO_OP = Option("none", NoOp(), lambda parent, params, x, key: {})
