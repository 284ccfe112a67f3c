"""Residual blocks."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, inherit, told
from gam_jax.layers.ladder import Residuals, Whole
from gam_jax.layers.linear import NoOp
from gam_jax.layers.mlp import MLP
from gam_jax.layers.norm import LayerNorm
from gam_jax.params import Params, Table
from gam_jax.units import UnitTable, joined, within
from sharding.axes import Axes
from sharding.bounds import Rate, Size, check_bounds

FORMS = ("sequential", "parallel")
NORMS = ("pre", "post", "sandwich", "out")


NORMED_OUT = ("sandwich", "out")
"""Where what the layers of a step give is normed before it is added."""


class HalfBlocks(Layer):
    """What adds to a residual stream, one half block after another."""

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
        """One half block after another."""
        after, carry = self.through(params, Whole(x), carry, axes, key=key, starts=starts)
        return after.read(), carry

    @abc.abstractmethod
    def through(
        self,
        params: Params,
        stream: Residuals,
        carry: Carry | None,
        axes: Axes,
        *,
        key: Array | None,
        starts: Array | None,
    ) -> tuple[Residuals, Carry]:
        """A call, on a stream of any form: one that is whole, or in two as a ladder has it."""


@dataclasses.dataclass(frozen=True)
class Block(HalfBlocks):
    """h + mixer(norm(h)), then h + ffn(norm(h)): pre-norm residual, as in the GAM paper.

    Attributes:
      mixer: what mixes tokens.
      ffn: what each token does alone.
      norm: each place that norms has its own parameters of this layer.
      width, dropout: of the layers inside.
      form: "sequential": two steps. "parallel": one, h + mixer(norm(h)) + ffn(norm(h)), on one norm
        (GPT-J; PaLM, arXiv 2204.02311, section 2).
      norms: "pre": h + f(norm(h)). "post": norm(h + f(h)) (arXiv 1706.03762). "sandwich":
        h + norm'(f(norm(h))) (CogView, arXiv 2105.13290; Gemma 2). "out": h + norm(f(h)) (OLMo 2,
        arXiv 2501.00656).
      residual_scale: constant on what each step adds to h (Granite's residual_multiplier).
    """

    mixer: Layer
    ffn: Layer = MLP()
    norm: Layer = LayerNorm()
    width: Size | None = None
    dropout: Rate | None = None
    form: str = "sequential"
    norms: str = "pre"
    residual_scale: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self)
        for name, valid in (("form", FORMS), ("norms", NORMS)):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"Block.{name} '{getattr(self, name)}' is not one of {', '.join(valid)}"
                )
        for name in ("mixer", "ffn", "norm"):
            inner = inherit(getattr(self, name), width=self.width, dropout=self.dropout)
            object.__setattr__(self, name, inner)

    @property
    def steps(self) -> dict[str, tuple[str, ...]]:
        """The residual steps: what begins the names of a step's norms, and its layers.

        Normed before each step, a `NoOp` is no step and has no norm.
        """
        if self.form == "parallel":
            return {"": ("mixer", "ffn")}
        steps = {"mixer_": ("mixer",), "ffn_": ("ffn",)}
        if self.norms != "pre":
            return steps  # a norm of nothing has a bias
        return {
            name: own for name, own in steps.items() if not isinstance(getattr(self, own[0]), NoOp)
        }

    def table(self) -> Table:
        """The tables of its layers and norms, in the order in which they run."""
        table: dict[str, Table] = {}
        for prefix, layers in self.steps.items():
            if self.norms != "out":
                table[f"{prefix}norm"] = self.norm.table()
            for name in layers:
                table[name] = getattr(self, name).table()
            if self.norms in NORMED_OUT:
                table[f"{prefix}out_norm"] = self.norm.table()
        return table

    def unit_table(self) -> UnitTable:
        """Those of mixer and feed-forward; the width where both have it."""
        norms = [within(n, 0, self.norm.unit_table(), "norm") for n in self.table() if "norm" in n]
        layers = [within(n, 0, getattr(self, n).unit_table(), n) for n in ("mixer", "ffn")]
        return joined(*layers, *norms)

    def silent(self) -> tuple[str, ...]:
        """Those of mixer and feed-forward; none where the stream itself is normed."""
        own = {name: getattr(self, name).silent() for name in ("mixer", "ffn")}
        if self.norms == "post" or not all(own.values()):
            return ()
        return tuple(f"{name}/{inner}" for name in own for inner in own[name])

    def experts_apart(self, params: Params, take: Callable[[Any, int], Any]) -> Params:
        """Those of mixer and feed-forward."""
        named = {"mixer": self.mixer, "ffn": self.ffn}
        own = {name: layer.experts_apart(params[name], take) for name, layer in named.items()}
        return {**params, **own}

    def carry_table(self, batch: int) -> Any:
        """Those of mixer and feed-forward."""
        return {"mixer": self.mixer.carry_table(batch), "ffn": self.ffn.carry_table(batch)}

    def through(
        self,
        params: Params,
        stream: Residuals,
        carry: Carry | None,
        axes: Axes,
        *,
        key: Array | None,
        starts: Array | None,
    ) -> tuple[Residuals, Carry]:
        """See `HalfBlocks.through`."""
        begin: Carry = {"mixer": None, "ffn": None} if carry is None else carry
        keys = (None, None) if key is None else jax.random.split(key)
        own: dict[str, Array | None] = {"mixer": keys[0], "ffn": keys[1]}
        after: dict[str, Carry] = {"mixer": (), "ffn": ()}

        def normed(name: str, x: Array) -> Array:
            return self.norm(params[name], x, None, axes)[0]

        for prefix, layers in self.steps.items():
            x = stream.read()
            inside = x if self.norms in ("post", "out") else normed(f"{prefix}norm", x)
            changes = []
            for name in layers:
                layer: Layer = getattr(self, name)
                change, after[name] = layer(
                    params[name], inside, begin[name], axes, key=own[name], **told(starts)
                )
                changes.append(change)
            change = functools.reduce(jnp.add, changes)
            change = normed(f"{prefix}out_norm", change) if self.norms in NORMED_OUT else change
            scale = self.residual_scale
            stream = stream.plus(change if scale == 1 else scale * change)
            if self.norms == "post":
                stream = Whole(normed(f"{prefix}norm", stream.read()))
        return stream, after


@dataclasses.dataclass(frozen=True)
class Residual(HalfBlocks):
    """h + inner(norm(h)): a block of one step, as Mamba's, which has no feed-forward.

    Attributes:
      inner: the layer whose output is added.
      norm: of what `inner` reads.
      width, dropout: given to the layers within where they leave them None.
    """

    inner: Layer
    norm: Layer = LayerNorm()
    width: Size | None = None
    dropout: Rate | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in ("inner", "norm"):
            layer = inherit(getattr(self, name), width=self.width, dropout=self.dropout)
            object.__setattr__(self, name, layer)

    def table(self) -> Table:
        """The tables of its layers."""
        return {"norm": self.norm.table(), "inner": self.inner.table()}

    def unit_table(self) -> UnitTable:
        """Those of the inner layer."""
        inner = within("inner", 0, self.inner.unit_table(), "inner")
        return joined(inner, within("norm", 0, self.norm.unit_table(), "norm"))

    def silent(self) -> tuple[str, ...]:
        """Those of the inner layer."""
        return tuple(f"inner/{name}" for name in self.inner.silent())

    def experts_apart(self, params: Params, take: Callable[[Any, int], Any]) -> Params:
        """The inner layer's."""
        return {**params, "inner": self.inner.experts_apart(params["inner"], take)}

    def carry_table(self, batch: int) -> Any:
        """The inner layer's."""
        return self.inner.carry_table(batch)

    def through(
        self,
        params: Params,
        stream: Residuals,
        carry: Carry | None,
        axes: Axes,
        *,
        key: Array | None,
        starts: Array | None,
    ) -> tuple[Residuals, Carry]:
        """See `HalfBlocks.through`."""
        normed, _ = self.norm(params["norm"], stream.read(), None, axes)
        change, after = self.inner(params["inner"], normed, carry, axes, key=key, **told(starts))
        return stream.plus(change), after
