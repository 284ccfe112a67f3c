"""Low-rank adapters beside the matrices of any layer."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import WHOLE, Carry, Layer, inherit, told
from gam_jax.params import Param, Params, Table, fan_in, zeros
from sharding import collectives
from sharding.axes import Axes
from sharding.bounds import Positive, Rate, Size, check_bounds
from sharding.errors import UserError

ADAPTERS = "adapters"
"""Their entry in a table, beside those of the layer inside."""

COUNTED = ("layer", "stream", "expert")
"""Leading axes that count matrices: each has adapters of its own."""

INPUTS = ("embed", "channel", "heads", "ffn", "slot", "latent")
"""Axes that a matrix begins with; a convolution begins with its taps, which have no name."""


class Sides(NamedTuple):
    """How an array is a matrix, or several.

    Attributes:
      counted: how many leading dimensions count matrices.
      first: how many after them are its first side, as it stands in the table.
    """

    counted: int
    first: int


def sides(param: Param) -> Sides | None:
    """How a parameter is a matrix; None for a convolution, a bias, a norm.

    The first side is the first axis after those that count matrices: a named one, and for heads
    their channels too. All that follows is the second side.
    """
    counted = _counted(param)
    own = param.axes[counted:]
    if not param.decay or not own or own[0] not in INPUTS:
        return None
    first = 2 if own[:2] == ("heads", None) and len(own) > 2 else 1
    return Sides(counted, first) if len(own) > first else None


def _counted(param: Param) -> int:
    """How many leading axes count matrices."""
    names = (place for place, name in enumerate(param.axes) if name not in COUNTED)
    return next(names, len(param.axes))


def leaves(table: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and entries of nested dicts, adapters left out."""
    for name, entry in table.items():
        if isinstance(entry, Mapping):
            if name != ADAPTERS:
                yield from leaves(entry, (*path, name))
        else:
            yield (*path, name), entry


def matrices(table: Table) -> dict[str, Param]:
    """The matrices of a table by their names."""
    return {"/".join(path): p for path, p in leaves(table) if sides(p) is not None}


def chosen(on: str, names: Collection[str]) -> dict[str, list[str]]:
    """For each pattern of `on`, the names that it matches.

    Args:
      on: patterns joined by commas.
      names: of matrices.

    Raises:
      UserError: a pattern that matches none; it lists the nearest names.
    """
    found = {}
    for pattern in [one.strip() for one in on.split(",") if one.strip()] or [""]:
        found[pattern] = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not found[pattern]:
            near = difflib.get_close_matches(pattern, names, 4, 0.3) or sorted(names)[:6]
            raise UserError(
                f"adapters on '{on}': '{pattern}' matches no matrix; the nearest are "
                f"{', '.join(near) or 'none, since there is no matrix'}"
            )
    return found


@dataclasses.dataclass(frozen=True)
class Factor(Param):
    """One of the two factors a, b of what is added to a matrix.

    Attributes:
      scale: what a b is multiplied with.
      matrix: the adapted one.
    """

    scale: float = 1.0
    matrix: Param | None = None


@dataclasses.dataclass(frozen=True)
class Adapted(Layer):
    """The inner layer with W + (alpha / rank) a b in the place of each chosen matrix W.

    Source: Hu et al. 2021, "LoRA", arXiv 2106.09685, section 4.1. a [inputs, rank] begins random,
    b [rank, outputs] as zeros, so that the layer begins as `inner`, to the last bit. The names of
    the inner layer's parameters stay what they were; adapters stand beside them, so that
    `optimizer.only="*/adapters/*"` trains them alone.

    The sum is made from this device's own parts of W, a and b: nothing more is sent forward. It
    is kept for the backward pass like an activation, unless blocks are run again (`model.remat`)
    or parameters are in shards.

    Attributes:
      inner: any layer.
      rank: columns of a, rows of b.
      alpha: the scale of what is added, times rank.
      on: patterns of names, joined by commas, as "mixer/*,ffn/w_in", of the inner layer's
        matrices. What is no matrix (a bias, a norm, a convolution) stays as it is.
      rooted: the scale is alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732).
      width, dropout: given to the layer inside where it leaves them None.
    """

    inner: Layer
    rank: Size = 8
    alpha: Positive = 16.0
    on: str = "*"
    rooted: bool = False
    width: Size | None = None
    dropout: Rate | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if isinstance(self.inner, Adapted):
            raise ValueError("Adapted.inner is adapted already: merge its adapters first")
        inner = inherit(self.inner, width=self.width, dropout=self.dropout)
        object.__setattr__(self, "inner", inner)

    @property
    def scale(self) -> float:
        """What a b is multiplied with."""
        return self.alpha / (math.sqrt(self.rank) if self.rooted else self.rank)

    def table(self) -> Table:
        """The inner layer's, and adapters: for each chosen matrix, by its path, a and b.

        a has the matrix's input axes and then the rank, b the rank and then its output axes;
        both begin with the axes that count matrices, and are float32 in any arithmetic.

        Raises:
          UserError: a pattern that matches no matrix.
        """
        table = self.inner.table()
        if ADAPTERS in table:
            raise ValueError(f"Adapted.inner has parameters of the name {ADAPTERS}")
        found: dict[str, Any] = {}
        own = matrices(table)
        for name in dict.fromkeys(itertools.chain(*chosen(self.on, own).values())):
            place = found
            for part in name.split("/"):
                place = place.setdefault(part, {})
            place.update(self._factors(own[name]))
        return {**table, ADAPTERS: found}

    def _factors(self, param: Param) -> dict[str, Factor]:
        own = sides(param)
        assert own is not None
        dims = list(zip(param.shape, param.axes, strict=True))
        counted, first, second = _cut(dims, own)
        into, out = (second, first) if param.transposed else (first, second)
        rank = [(self.rank, None)]

        def factor(dims: list[tuple[int, str | None]], init: Any) -> Factor:
            shape, axes = zip(*dims, strict=True)
            return Factor(shape, axes, init, precise=True, scale=self.scale, matrix=param)

        size = math.prod(size for size, _ in into)
        return {
            "a": factor(counted + into + rank, fan_in(size)),
            "b": factor(counted + rank + out, zeros),
        }

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
        """The inner layer on adapted matrices."""
        whole = with_adapters(self.table(), params)
        return self.inner(whole, x, carry, axes, key=key, **told(starts))


def with_adapters(table: Table, params: Params) -> dict[str, Any]:
    """Parameters with each adapter of the table, wherever it stands, added to its matrix.

    Args:
      table: of an adapted layer, or of what holds some.
      params: its parameters, whole or this device's part of each.

    Returns:
      Those of the table without adapters.
    """
    found: dict[str, Any] = {}
    for name, entry in table.items():
        if name != ADAPTERS:
            inside = isinstance(entry, Mapping)
            found[name] = with_adapters(entry, params[name]) if inside else params[name]
    if ADAPTERS not in table:
        return found
    return _added(found, table[ADAPTERS], params[ADAPTERS])


def _added(params: Any, table: Any, adapters: Any) -> Any:
    if isinstance(table.get("a"), Factor):
        return adapt(table["a"], params, adapters["a"], adapters["b"])
    changed = {name: _added(params[name], table[name], adapters[name]) for name in table}
    return {**params, **changed}


def adapt(factor: Factor, w: Array, a: Array, b: Array) -> Array:
    """w + scale a b, in float32 and then in the type of w; w itself where nothing is added.

    Args:
      factor: of the table.
      w: the matrix, of any type; whole, or this device's part.
      a: its factor at the inputs.
      b: its factor at the outputs.
    """
    param = factor.matrix
    assert param is not None
    own = sides(param)
    assert own is not None
    own = own._replace(counted=_counted(factor))  # a stack has added axes
    counted, first, second = _cut(list(w.shape), own)
    into, out = (second, first) if param.transposed else (first, second)
    rows, columns = math.prod(into), math.prod(out)
    a, b = (x.astype(jnp.float32) for x in (a, b))
    product = jnp.matmul(
        a.reshape(*counted, rows, -1),
        b.reshape(*counted, -1, columns),
        precision="highest",  # as exact as the sum, and a sign for `sharding.zero.keeps`
    )
    if param.transposed:
        product = jnp.swapaxes(product, -1, -2)
    change = factor.scale * product.reshape(w.shape)
    return _sum(*collectives.vary_alike(w.astype(jnp.float32), change)).astype(w.dtype)


@jax.custom_jvp
def _sum(w: Array, change: Array) -> Array:
    """w + change; where change is 0 it is w, so that -0 stays -0."""
    return jnp.where(change == 0, w, w + change)


@_sum.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return _sum(*primals), tangents[0] + tangents[1]


def _cut(dims: list[Any], own: Sides) -> tuple[list[Any], list[Any], list[Any]]:
    """A list of what the dimensions have: of those that count, of the first, the second side."""
    end = own.counted + own.first
    return dims[: own.counted], dims[own.counted : end], dims[end:]


def pairs(table: Table, path: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """For each adapted matrix of a table its name, the path of its adapters, and their a and b."""
    for name, entry in table.items():
        if not isinstance(entry, Mapping):
            continue
        if name != ADAPTERS:
            yield from pairs(entry, (*path, name))
            continue
        for own, _ in leaves(entry):
            if own[-1] == "a":
                place = (*path, name, *own[:-1])
                yield "/".join((*path, *own[:-1])), place, _entry(entry, own[:-1])


def _entry(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
