"""Several layers in one place, and logits that say how much of each there is."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, inherit, parted, statistics, told
from gam_jax.nested import with_held
from gam_jax.ops import choices
from gam_jax.ops.choices import ARCHITECTURE
from gam_jax.params import Param, Params, Table, normal
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Positive, Rate, Size, check_bounds
from sharding.errors import UserError

HOWS = ("sum", "one", "two")
LOGITS_STD = 1e-3
"""Of logits at the start: all options are about as likely."""


@dataclasses.dataclass(frozen=True)
class Mixed(Layer):
    """Options o_1, ..., o_N in one place; logits a, which are trained, say which to choose.

    "sum": y = sum_j w_j o_j(x), with weights w of the logits. All options run. "one": y = o_i(x)
    with i drawn by softmax(a) from the step's key. That option runs alone, and the backward pass
    runs it again, then the others one at a time, for the gradient by the gates, <dL/dy, o_j(x)>,
    which goes to logit i as sum_j of it times p_j (d_ij - p_i) (ProxylessNAS, arXiv 1812.00332,
    section 3.2; that is no unbiased gradient unless the loss is linear in y). So memory is that of
    one option. "two": two options are drawn, one of them is active, and the gradient is of those
    two logits.

    The draw is from a key that all devices have alike, so all take the same branch; but stages of
    a pipeline and workers draw each for themselves, see `check_apart`. Without a key nothing is
    drawn: "one", "two" and drawn weights then take the likeliest option, as streaming and serving
    do.

    With `share` K only the first 1 / K of the channels go through the options; the others pass by,
    and all are dealt out anew, so that the next layer's options see others (PC-DARTS, arXiv
    1907.05737).

    Attributes:
      options: the layers to choose from.
      how: "sum", "one" or "two".
      weights: of "sum" alone: "softmax", "sparsemax", "dirichlet" or "gumbel", see `ops.choices`.
      temperature: that logits are divided by, of "sum" alone.
      share: K.
      width, dropout: given to the options where they leave them None; they have width / K channels.
    """

    options: tuple[Layer, ...]
    how: str = "sum"
    weights: str = "softmax"
    temperature: Positive = 1.0
    share: Size = 1
    width: Size | None = None
    dropout: Rate | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        for name, valid in (("how", HOWS), ("weights", tuple(choices.WEIGHTS))):
            if getattr(self, name) not in valid:
                raise ValueError(
                    f"Mixed.{name} '{getattr(self, name)}' is not one of {', '.join(valid)}"
                )
        if self.how != "sum" and (self.weights, self.temperature) != ("softmax", 1.0):
            raise ValueError(
                f"Mixed.weights and Mixed.temperature are of how='sum': '{self.how}' draws by "
                f"softmax(a), so leave them out"
            )
        least = 2 if self.how == "two" else 1
        if len(self.options) < least:
            raise ValueError(f"Mixed.options: '{self.how}' needs at least {least}")
        if self.width is not None and self.width % self.share:
            raise ValueError(f"Mixed.share={self.share} does not divide {self.width} channels")
        given = self.gives({"width": self.width, "dropout": self.dropout})
        options = with_held(self, lambda layer: inherit(layer, **given)).options
        object.__setattr__(self, "options", options)
        if self.width is None or not self.drawn:
            return
        if counting := [x for x in options if statistics(x.carry_table(1))]:
            raise ValueError(
                f"Mixed.options: a {type(counting[0]).__name__} counts its tokens, and may not run "
                f"at all where one option is drawn: take how='sum' with softmax or sparsemax"
            )

    def gives(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Options have their share of the width."""
        width = values.get("width")
        return values if width is None else {**values, "width": width // self.share}

    @property
    def drawn(self) -> bool:
        """Whether anything is drawn from the step's key."""
        return self.how != "sum" or self.weights in choices.DRAWN

    @property
    def named(self) -> dict[str, Layer]:
        """The options, by the names of their parameters and carries."""
        return {str(i): layer for i, layer in enumerate(self.options)}

    def table(self) -> Table:
        """architecture: logits [N]; options: the table of each, by its number."""
        logits = Param((len(self.options),), (None,), normal(LOGITS_STD), decay=False, precise=True)
        options = {name: layer.table() for name, layer in self.named.items()}
        return {ARCHITECTURE: {"logits": logits}, "options": options}

    def silent(self) -> tuple[str, ...]:
        """Those of all options; none where channels pass by."""
        own = {name: layer.silent() for name, layer in self.named.items()}
        if self.share > 1 or not all(own.values()):
            return ()
        return tuple(f"options/{name}/{inner}" for name in own for inner in own[name])

    def carry_table(self, batch: int) -> Any:
        """That of each option, by its number; of one that does not run it stays as it was."""
        return {name: layer.carry_table(batch) for name, layer in self.named.items()}

    def apart(self, carry: Carry, part: Callable[[Any, int], Any]) -> Carry:
        """Of each option."""
        return {name: layer.apart(carry[name], part) for name, layer in self.named.items()}

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
        """The mixture; option i draws its own randomness from fold_in(key, i).

        Raises:
          UserError: see `check_apart`.
        """
        own = x.shape[-1] // self.share
        drawing, inner = (None, None) if key is None else jax.random.split(key)
        given = (params, x[..., :own], carry, axes, inner, starts)
        if self.drawn and (drawing is None or self.how != "sum"):
            y, after = self._chosen(*given, drawing)
        else:
            y, after = self._sum(*given, drawing)
        if self.share > 1:
            y = choices.shuffled(jnp.concatenate([y, x[..., own:]], axis=-1), self.share)
        return y, after

    def _sum(
        self,
        params: Params,
        x: Array,
        carry: Carry | None,
        axes: Axes,
        key: Array | None,
        starts: Array | None,
        drawing: Array | None,
    ) -> tuple[Array, Carry]:
        """All options, each weighed."""
        logits = choices.wide(params[ARCHITECTURE]["logits"])
        weights = choices.WEIGHTS[self.weights](logits, drawing, self.temperature)
        found: list[Array] = []
        after: dict[str, Carry] = {}
        for i, (name, layer) in enumerate(self.named.items()):
            own = None if key is None else jax.random.fold_in(key, i)
            begin = None if carry is None else carry[name]
            y, after[name] = layer(params["options"][name], x, begin, axes, key=own, **told(starts))
            found.append(y)
        weights, *found = collectives.vary_alike(weights, *found)
        parts = [weights[i] * choices.wide(y) for i, y in enumerate(found)]
        return functools.reduce(jnp.add, parts).astype(x.dtype), after

    def _chosen(
        self,
        params: Params,
        x: Array,
        carry: Carry | None,
        axes: Axes,
        key: Array | None,
        starts: Array | None,
        drawing: Array | None,
    ) -> tuple[Array, Carry]:
        """One option, drawn or the likeliest."""
        logits = choices.wide(params[ARCHITECTURE]["logits"])
        if drawing is None:
            drawn = choices.likeliest(logits)
        else:
            drawn = choices.draw(logits, drawing, 2 if self.how == "two" else len(self.options))
        differs = sorted(collectives.varying(drawn.options) | collectives.varying(drawn.active))
        check_apart(axes, differs)
        begin = dict.fromkeys(self.named) if carry is None else carry
        smooth: Any = jax.tree.map(
            lambda leaf: collectives.as_varying(leaf, differs),
            (params["options"], x, {name: begin[name] for name in self.named}),
        )
        fixed = _Fixed(drawn.options, drawn.active, key, starts)
        y = jax.eval_shape(_branches(self, axes, smooth, fixed)[0], smooth)[0]
        gates = collectives.as_varying(drawn.gates, sorted(collectives.varying(y)))
        found: Any = _active(self, axes, smooth, gates, fixed)
        y, after = found
        return checkpoint_name(y, "mixed"), after  # kept where parameters are gathered again


def check_apart(axes: Axes, differs: Collection[str]) -> None:
    """Refuses devices that run other options at once where a message waits for all devices.

    Those are messages from neighbour to neighbour, over split tokens and in `parallel.overlap`.

    Args:
      axes: that the options run over.
      differs: mesh axes along which one option or another may run; of these only stages of a
        pipeline and workers have parameters or keys of their own.

    Raises:
      UserError: it names the axes.
    """
    along = axes.seq or (axes.residual if axes.overlap else None)
    why = "" if axes.seq else f" (parallel.overlap={axes.overlap})"
    for name in ("pipe", "worker"):
        if along and name in differs:
            raise UserError(
                f"Mixed may run another option on each device of mesh axis {name}, which would "
                f"wait for one another's messages along {along}{why}: make {name} or {along} 1, "
                f"or take how='sum' with weights='softmax' or 'sparsemax'"
            )


class _Fixed(NamedTuple):
    """What nothing is differentiated by."""

    options: Array
    active: Array
    key: Array | None
    starts: Array | None


_Smooth = tuple[dict[str, Params], Array, dict[str, Carry]]
"""What an option is differentiated by: parameters of all, the inputs, carries of all."""
_Branch = Callable[[_Smooth], tuple[Array, dict[str, Carry]]]


def _branches(layer: Mixed, axes: Axes, smooth: _Smooth, fixed: _Fixed) -> Sequence[_Branch]:
    """A program for each option, whose results are all of one type, as `lax.switch` asks."""

    def run(number: int, smooth: _Smooth) -> tuple[Array, dict[str, Carry]]:
        options, x, carry = smooth
        own = None if fixed.key is None else jax.random.fold_in(fixed.key, number)
        name, option = str(number), layer.options[number]
        given = options[name], x, carry[name], axes
        y, after = option(*given, key=own, **told(fixed.starts))
        others = {n: _waiting(o, carry[n], x, axes) for n, o in layer.named.items() if n != name}
        return y, {n: {name: after, **others}[n] for n in layer.named}

    runs = [functools.partial(run, number) for number in range(len(layer.options))]
    kinds = [jax.eval_shape(one, smooth) for one in runs]
    drawn = collectives.varying(fixed.options) | collectives.varying(fixed.active)

    def alike(y: Array, *kinds: Any) -> Array:
        axes_of = drawn.union(*map(collectives.varying, kinds))
        return collectives.as_varying(y.astype(jnp.result_type(*kinds)), sorted(axes_of))

    return [lambda s, one=one: jax.tree.map(alike, one(s), *kinds) for one in runs]


def _waiting(layer: Layer, carry: Carry | None, x: Array, axes: Axes) -> Carry:
    """The carry of an option that does not run: as it is, or that before the first token."""
    now = None if carry is None else parted(carry)[0]
    leaves = jax.tree.leaves(now, is_leaf=lambda leaf: leaf is None)
    return layer.begun(now, x, axes) if any(leaf is None for leaf in leaves) else now


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _active(
    layer: Mixed, axes: Axes, smooth: _Smooth, gates: Array, fixed: _Fixed
) -> tuple[Array, dict[str, Carry]]:
    """What the active option gives; gates are 1 there, and are read by the backward pass alone."""
    own = fixed.options[fixed.active]
    return lax.switch(own, _branches(layer, axes, smooth, fixed), smooth)


def _forward(layer: Mixed, axes: Axes, *given: Any) -> tuple[Any, Any]:
    smooth, gates, fixed = jax.tree.map(lambda leaf: leaf.value, given)
    return _active(layer, axes, smooth, gates, fixed), (smooth, fixed)


def _backward(layer: Mixed, axes: Axes, kept: Any, changes: Any) -> tuple[Any, Array, None]:
    """Of the active option run again; of gates by the others, one at a time."""
    smooth, fixed = kept
    branches = _branches(layer, axes, smooth, fixed)
    changes, there = jax.tree.leaves(changes), [not _is_zero(x) for x in jax.tree.leaves(changes)]
    dy = changes[0].instantiate() if _is_zero(changes[0]) else changes[0]
    changes = [change for change, has in zip(changes, there, strict=True) if has]

    def gate(y: Array) -> Array:
        return jnp.sum(choices.wide(dy) * choices.wide(y))

    def differentiated(branch: _Branch) -> Callable[[_Smooth], tuple[Array, Any]]:
        def read(smooth: _Smooth) -> tuple[list[Array], Array]:
            """What anything follows from: no carry that nobody looks at."""
            outs = jax.tree.leaves(branch(smooth))
            return [x for x, has in zip(outs, there, strict=True) if has], outs[0]

        def run(smooth: _Smooth) -> tuple[Array, Any]:
            _, pulled, y = jax.vjp(read, smooth, has_aux=True)
            return gate(y), jax.tree.map(_if_float, smooth, *pulled(changes))

        return run

    own, found = lax.switch(
        fixed.options[fixed.active], [differentiated(one) for one in branches], smooth
    )
    count = fixed.options.shape[0]
    if count == 1:
        return found, own[None], None

    def other(step: Array) -> Array:
        number = fixed.options[(fixed.active + step) % count]
        return lax.switch(number, [lambda s, one=one: gate(one(s)[0]) for one in branches], smooth)

    gates = jnp.concatenate([own[None], lax.map(other, jnp.arange(1, count))])
    return found, jnp.roll(gates, fixed.active), None


def _is_zero(change: Any) -> bool:
    return isinstance(change, SymbolicZero)


def _if_float(x: Array, change: Any) -> Any:
    return change if jnp.issubdtype(x.dtype, jnp.inexact) else None


_active.defvjp(_forward, _backward, symbolic_zeros=True)
