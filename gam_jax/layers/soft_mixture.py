"""Mixers that all work on every token, and a router that weighs what they give."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.attention import Attention
from gam_jax.layers.base import WHOLE, Carry, Layer, inherit, known, told
from gam_jax.layers.latent_attention import LatentAttention
from gam_jax.params import Param, Params, Table, names_of, normal, stack
from gam_jax.units import ALL_CHANNELS, WIDTH, Part, Unit, UnitTable, joined, within
from sharding.axes import Axes
from sharding.bounds import Rate, Size, check_bounds

KEYS: dict[type, tuple[str, ...]] = {
    Attention: ("key", "value"),
    LatentAttention: ("latent", "shared_key", "key", "value"),
}
"""What begins the names of the parameters that keys and values are made of."""


@dataclasses.dataclass(frozen=True)
class SoftMixture(Layer):
    """sum_i g_i(x) mixer_i(x) with g = softmax(x W_g) over all the mixers.

    The attention experts of BAM (Zhang et al. 2024, arXiv 2408.08274, section 3.2), of any mixer.
    None is left out for any token, so there is nothing to balance. Each mixer is split over
    `tensor` as it is alone; over `expert`, which splits rows, mixers are whole.

    Attributes:
      inner: what each expert is.
      experts: how many.
      shared_keys: all have the same keys and values, and so one cache; of attention alone (BAM's
        "shared KV").
      width, dropout: of the layer inside.
    """

    inner: Layer
    experts: Size = 4
    shared_keys: bool = False
    width: Size | None = None
    dropout: Rate | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.shared_keys and type(self.inner) not in KEYS:
            raise ValueError(
                f"SoftMixture.shared_keys: a {type(self.inner).__name__} has no keys and values "
                f"to share; {' and '.join(cls.__name__ for cls in KEYS)} have"
            )
        inner = inherit(self.inner, width=self.width, dropout=self.dropout)
        object.__setattr__(self, "inner", inner)

    def is_shared(self, name: str) -> bool:
        """Whether a parameter of the layer inside is one for all experts."""
        return self.shared_keys and name.startswith(KEYS[type(self.inner)])

    def table(self) -> Table:
        """router [D, E]; shared: what is one for all; experts: the rest, each [E, ...]."""
        width, inner = known(self.width, "width", self), self.inner.table()
        start = normal((0.1 / width) ** 0.5)  # small, as in `MoE`
        shared = {name: part for name, part in inner.items() if self.is_shared(name)}
        own = {name: part for name, part in inner.items() if name not in shared}
        return {
            "router": Param((width, self.experts), ("embed", None), start, precise=True),
            "shared": shared,
            "experts": stack(own, self.experts),
        }

    def unit_table(self) -> UnitTable:
        """experts; and those of the layer inside, cut alike in all."""
        reason = "a softmax without a bias weighs them"
        own = [name for name in names_of(self.inner.table()) if not self.is_shared(name)]
        made = (*(Part(f"experts/{name}", 0) for name in own), Part("router", 1))
        experts = Unit(made, equal=reason, unweighed=reason)
        router = {WIDTH: Unit((), (Part("router", 0),), equal=ALL_CHANNELS)}
        inner = {
            name: self._placed(unit)
            for name, unit in within("", 0, self.inner.unit_table(), "inner").items()
        }
        return {"experts": experts, **joined(inner, router)}

    def _placed(self, unit: Unit) -> Unit:
        """A unit of the layer inside, where its parameters are here."""

        def moved(part: Part) -> Part:
            if self.is_shared(part.name):
                return dataclasses.replace(part, name=f"shared/{part.name}")
            return dataclasses.replace(part, name=f"experts/{part.name}", dim=part.dim + 1)

        makes, takes, logits = (
            tuple(map(moved, parts)) for parts in (unit.makes, unit.takes, unit.logits)
        )
        return dataclasses.replace(unit, makes=makes, takes=takes, logits=logits, lead=0)

    def with_units(self, name: str, size: int) -> SoftMixture:
        """With so many experts, or channels."""
        if name == "experts":
            return dataclasses.replace(self, experts=size)
        return super().with_units(name, size)

    def silent(self) -> tuple[str, ...]:
        """That of the layer inside, in all."""
        return tuple(
            f"{'shared' if self.is_shared(name) else 'experts'}/{name}"
            for name in self.inner.silent()
        )

    def carry_table(self, batch: int) -> Any:
        """The inner layer's, with a leading axis of experts if keys are not shared."""
        inner = self.inner.carry_table(batch)
        return inner if self.shared_keys else stack(inner, self.experts)

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
        """All mixers, one after another; expert i draws its randomness from fold_in(key, i)."""

        found, states = [], []
        for i in range(self.experts):
            own = jax.tree.map(lambda p, i=i: p[i], params["experts"])
            begin = carry if self.shared_keys else jax.tree.map(lambda c, i=i: c[i], carry)
            random = None if key is None else jax.random.fold_in(key, i)
            both = {**params["shared"], **own}
            y, after = self.inner(both, x, begin, axes, key=random, **told(starts))
            found.append(y)
            states.append(after)
        # Shared keys are one computation, written E times: the compiler keeps one.
        after = states[0]
        if not self.shared_keys:
            after = jax.tree.map(lambda *parts: jnp.stack(parts), *states)
        scores = jnp.einsum(
            "btd,de->bte", x.astype(jnp.float32), params["router"].astype(jnp.float32)
        )
        gates = jax.nn.softmax(scores, axis=-1)
        parts = [gates[..., i, None] * y.astype(jnp.float32) for i, y in enumerate(found)]
        return functools.reduce(jnp.add, parts).astype(x.dtype), after
