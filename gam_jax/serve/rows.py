"""The carry of rows that are served: where it lies, and how one row of it is taken and put back.

Each block has arrays of its own, so that all are written in place. A growing cache is a pool of
pages; what is called a carry here holds the pool alone in its place, and `with_tables` makes of it
what layers read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int

from gam_jax.models.carry import ModelCarry
from gam_jax.models.language import LanguageModel
from gam_jax.ops.pages import Pages
from gam_jax.params import Param, one_of_stack, zeros
from sharding import collectives
from sharding.axes import Axes
from sharding.layout import Layout

COUNTER = Param((0,), ("batch",), zeros, dtype="int32")
"""`ModelCarry.position`, as a table has it."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """S rows of one model on a mesh.

    Rows are split over `data` and `expert` where these divide them. Where a cache grows they are
    not: its pages belong to any row, so all devices of those axes hold them, and compute alike.

    Attributes:
      model: for texts of at most the length that is served.
      layout: the mesh, see `Layout.whole`.
      rows: S.
      page: tokens of a page; 0 where no cache grows.
      pages: of the pool.
      limit: the most tokens of a row; 0 for any number.
    """

    model: LanguageModel
    layout: Layout
    rows: int
    page: int
    pages: int
    limit: int

    @property
    def row_pages(self) -> int:
        """N, the most pages of a row; 0 where no cache grows."""
        return -(-self.limit // self.page) if self.page else 0

    @functools.cached_property
    def table(self) -> ModelCarry:
        """The carry as a table, each block's by itself; a pool in the place of a growing cache."""
        trunk = self.model.trunk
        table = trunk.apart(trunk.carry_table(self.rows), lambda param, _: one_of_stack(param))
        table = _map(self._stored, table)
        position = dataclasses.replace(COUNTER, shape=(self.rows,))
        return ModelCarry(position, table)  # type: ignore[arg-type]

    def _stored(self, param: Param) -> Param:
        """The dtype that it is stored in; of a cache that grows, the pool."""
        dtype = self.model.dtype if param.cache else param.dtype
        if not grows(param):
            return dataclasses.replace(param, dtype=dtype)
        sizes = {"batch": self.pages, "token": self.page}
        pairs = zip(param.axes, param.shape, strict=True)
        shape = tuple(sizes.get(axis or "", size) for axis, size in pairs)
        return dataclasses.replace(param, shape=shape, dtype=dtype)

    @property
    def axes(self) -> Axes:
        """The mesh axes of a step of all rows."""
        axes = dataclasses.replace(self.layout.axes, seq=None)
        rows = 0 if any(map(grows, _leaves(self.table))) else self.rows
        return dataclasses.replace(axes, **self.layout.rows_over(rows))

    @property
    def row_axes(self) -> Axes:
        """The mesh axes of a program of one row."""
        return dataclasses.replace(self.axes, data=None, expert=None)

    def specs(self, rows: tuple[str, ...]) -> ModelCarry:
        """How the carry lies, its rows split over these mesh axes."""

        def spec(param: Param) -> PartitionSpec:
            own = tuple(None if axis in ("batch", "token") else axis for axis in param.axes)
            entries = list(self.layout.spec("carry", param.shape, own))
            if not grows(param):
                entries[param.axes.index("batch")] = rows or None
            return PartitionSpec(*entries)

        return _map(spec, self.table)

    def shapes(self, rows: int) -> ModelCarry:
        """Shapes of the carry of so many rows; of one that is saved, without pools."""

        def shape(param: Param) -> jax.ShapeDtypeStruct:
            pairs = zip(param.axes, param.shape, strict=True)
            batch = tuple(rows if axis == "batch" else size for axis, size in pairs)
            return jax.ShapeDtypeStruct(param.shape if grows(param) else batch, param.dtype)

        return _map(shape, self.table)

    @property
    def page_shapes(self) -> ModelCarry:
        """Shapes of one page of each pool; of all else, those of one row."""

        def shape(param: Param, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            if not grows(param):
                return x
            at = param.axes.index("batch")
            return jax.ShapeDtypeStruct((*x.shape[:at], 1, *x.shape[at + 1 :]), x.dtype)

        return _map(shape, self.table, self.shapes(1))

    def with_tables(self, carry: ModelCarry, pages: Int[Array, "B N"]) -> ModelCarry:
        """The carry as layers read it: a pool and its rows' pages."""

        def one(param: Param, x: Array) -> Any:
            if not grows(param):
                return x
            lead = x.shape[: param.axes.index("batch")]
            return Pages(x, jnp.broadcast_to(pages, (*lead, *pages.shape)))

        return _map(one, self.table, carry)

    def without_tables(self, carry: ModelCarry) -> ModelCarry:
        """The inverse."""
        return _map(lambda param, x: x.pool if grows(param) else x, self.table, carry)

    def take(self, carry: ModelCarry, rows: Int[Array, " R"], split: tuple[str, ...]) -> ModelCarry:
        """Some rows of the carry, alike on all devices that split the rows; pools as they are.

        A row S, which there is not, is one that has read nothing.
        """

        def one(param: Param, x: Array) -> Array:
            if grows(param):
                return x
            at = param.axes.index("batch")
            index, here = _own(rows, x.shape[at], split)
            found = jnp.take(x, index, axis=at, mode="clip")
            found = jnp.where(here.reshape(-1, *(1,) * (x.ndim - 1 - at)), found, 0)
            return collectives.psum(found, split) if split else found

        return _map(one, self.table, carry)

    def put(
        self, carry: ModelCarry, rows: Int[Array, " R"], some: ModelCarry, split: tuple[str, ...]
    ) -> ModelCarry:
        """The carry with other rows in those places, and the pools of `some`; none for a row S."""

        def into(param: Param, x: Array, new: Array) -> Array:
            if grows(param):
                return new
            at = param.axes.index("batch")
            index, here = _own(rows, x.shape[at], split)
            place = (*(slice(None),) * at, jnp.where(here, index, x.shape[at]))
            return x.at[place].set(new.astype(x.dtype), mode="drop")

        return _map(into, self.table, carry, some)

    def where(self, rows: Bool[Array, S], after: ModelCarry, before: ModelCarry) -> ModelCarry:
        """Rows of `after` where said so, else of `before`; the pools of `after`.

        What a row has written to its pages and not kept lies behind its position, where nobody
        looks, and is written again.
        """

        def one(param: Param, x: Array, y: Array) -> Array:
            if grows(param):
                return x
            behind = x.ndim - 1 - param.axes.index("batch")
            return jnp.where(rows.reshape(-1, *(1,) * behind), x.astype(y.dtype), y)

        return _map(one, self.table, after, before)

    def pools(self, function: Callable[[Array, int], Any], carry: ModelCarry) -> ModelCarry:
        """The carry with `function(pool, axis of pages)` in the place of each pool."""

        def one(param: Param, x: Array) -> Any:
            return function(x, param.axes.index("batch")) if grows(param) else x

        return _map(one, self.table, carry)

    def parted(self, carry: ModelCarry) -> tuple[list[Any], list[Any]]:
        """What a row has of its own, and the pools, each in order."""
        pairs = zip(_leaves(self.table), jax.tree.leaves(carry), strict=True)
        own: list[Any] = []
        pools: list[Any] = []
        for param, x in pairs:
            (pools if grows(param) else own).append(x)
        return own, pools

    def joined(self, own: list[Any], pools: list[Any]) -> ModelCarry:
        """The inverse of `parted`."""
        own, pools = list(own), list(pools)
        return _map(lambda param: (pools if grows(param) else own).pop(0), self.table)


def has_growing_cache(model: LanguageModel) -> bool:
    """Whether a row of it needs pages."""
    return any(map(grows, _leaves(model.trunk.carry_table(1))))


def grows(param: Param) -> bool:
    """Whether it has a place for each token of a text."""
    return "token" in param.axes


def _own(rows: Array, size: int, split: tuple[str, ...]) -> tuple[Array, Array]:
    """The places of rows among this device's, and which of them are there."""
    places = rows - collectives.axis_index(split) * size if split else rows
    return places, (places >= 0) & (places < size)


def _is_param(leaf: object) -> bool:
    return isinstance(leaf, Param)


def _leaves(table: Any) -> list[Param]:
    return jax.tree.leaves(table, is_leaf=_is_param)


def _map(function: Callable[..., Any], table: Any, *rest: Any) -> Any:
    return jax.tree.map(function, table, *rest, is_leaf=_is_param)
