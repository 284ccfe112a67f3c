"""Parallel streams: P learned variations of the input through one shared model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.layers.base import (
    WHOLE,
    Carry,
    Layer,
    Statistics,
    inherit,
    known,
    paired,
    parted,
    row_counter,
    told,
)
from gam_jax.layers.stack import Apart
from gam_jax.nested import with_held
from gam_jax.ops import documents
from gam_jax.ops.linear import linear
from gam_jax.ops.pages import Pages
from gam_jax.params import (
    Param,
    Params,
    Table,
    fan_in,
    normal,
    one_of_stack,
    path_name,
    zeros,
)
from sharding import collectives, zero
from sharding.axes import Axes
from sharding.bounds import Count, Rate, Share, Size, check_bounds

LayerType = TypeVar("LayerType")

OWN = ("starts", "aggregator")
"""What streams add to the inner layer's table."""

STAYING = ("prefix_key", "prefix_value", "offset")
"""Parts of a carry that every token sees alike, however many came before it."""

START_STD = 0.02
"""Of starts whose layer does not say better in its carry's table."""


@dataclasses.dataclass(frozen=True)
class ParScale(Layer):
    """P streams of one layer, mixed token by token: y_t = sum_p a_tp inner(x; start_p)_t.

    Source: Parallel Scaling Law for Language Models (arXiv 2505.10475), section 3. What differs
    between streams is how their sequence begins: the start of the inner layer's carry is learned,
    one for each stream. In attention that is a prefix of keys and values in every layer, as
    published; in a scan its state, in a convolution the inputs before the first, in a bank of
    slots an offset of the queries (`Attention.prefix`, `GAM.offset`). The weights are
    a_t = (1 - e) softmax(W_out silu(W_in [h_t1 ... h_tP] + b_in) + b_out) + e / P.

    One stream is the inner layer and no more: its table, its numbers. Streams are the outer factor
    of the rows that `inner` sees, on one device or split over the mesh axis of the logical axis
    "stream", and meet in the mixture alone.

    Attributes:
      inner: any causal layer.
      streams: P.
      prefix: m, keys and values that attention inside begins with, where it says none itself.
      smoothing: e; 0.1 in the paper, 0.01 in the configuration of its released models.
    """

    inner: Layer
    streams: Size = 2
    prefix: Count = 48
    smoothing: Share = 0.1
    width: Size | None = None
    dropout: Rate | None = None

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.inner.causal:
            raise ValueError("ParScale.inner must be causal: streams differ in how they begin")
        inner = inherit(self.inner, width=self.width, dropout=self.dropout)
        object.__setattr__(self, "inner", inner)
        if self.streams > 1 and not self._starts():
            raise ValueError(
                "ParScale.inner has nothing to begin with that could differ between streams: "
                "give a layer with a carry, or ParScale.prefix to attention"
            )

    @property
    def varied(self) -> Layer:
        """The inner layer with what streams can differ in."""
        if self.streams == 1:
            return self.inner
        return with_starts(self.inner, prefix=self.prefix, offset=True)

    def table(self) -> Table:
        """The inner layer's; beside it, for more streams than one, starts and aggregator.

        starts holds the learned parts of the carry by their paths, [P, ...]; aggregator w_in
        [P, D, D], b_in [D], w_out [D, P] and b_out [P].
        """
        table = self.inner.table()
        if self.streams == 1:
            return table
        if found := set(OWN) & set(table):
            raise ValueError(f"ParScale.inner has parameters of the name {', '.join(found)}")
        width = known(self.width, "width", self)
        sides = fan_in(self.streams * width), fan_in(width)
        starts = {
            name: dataclasses.replace(
                param,
                axes=_of_streams(param),
                init=normal(START_STD) if param.init is zeros else param.init,
                decay=False,
            )
            for name, param in self._starts().items()
        }
        aggregator = {
            "w_in": Param((self.streams, width, width), ("stream", "embed", None), sides[0]),
            "b_in": Param((width,), (None,), sides[0], decay=False),
            "w_out": Param((width, self.streams), ("embed", None), sides[1]),
            "b_out": Param((self.streams,), (None,), sides[1], decay=False),
        }
        return {**table, "starts": starts, "aggregator": aggregator}

    def carry_table(self, batch: int) -> Any:
        """The inner layer's, rows [P, B]; and the tokens that each row has seen, 0 at its start."""
        inner = self.varied.carry_table(batch)
        if self.streams == 1:
            return inner

        def rows(param: Param) -> Param:
            if "batch" not in param.axes:
                return param
            at = param.axes.index("batch")
            shape = (*param.shape[:at], self.streams, *param.shape[at:])
            axes = (*param.axes[:at], "stream", *param.axes[at:])
            return dataclasses.replace(param, shape=shape, axes=axes)

        return {"seen": row_counter(batch), "streams": _map(rows, inner)}

    def apart(self, carry: Carry, part: Callable[[Any, int], Any]) -> Carry:
        """The inner layer's."""
        if self.streams == 1:
            return self.inner.apart(carry, part)
        return {**carry, "streams": self.varied.apart(carry["streams"], part)}

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
        """All streams as rows of one batch; they meet in two sums over the axis of streams."""
        if self.streams == 1:
            return self.inner(params, x, carry, axes, key=key, **told(starts))
        own, batch, tokens = self.own(axes), x.shape[0], x.shape[1]
        params = self.shared(params, axes)
        inside = {name: params[name] for name in params if name not in OWN}
        carry, _ = parted(carry)  # each sequence begins with what this layer has learned
        before, documents_rows = self.begin(params["starts"], carry, batch, starts, axes)
        hidden, after = self.varied(
            inside,
            self.as_rows(x, axes),
            before,
            self.inside(axes),
            key=key,
            **told(documents_rows),
        )
        y = self.mixed(params["aggregator"], hidden, axes)
        for name in axes.tokens:
            tokens *= collectives.axis_size(name)
        seen = jnp.zeros(batch, jnp.int32) if carry is None else carry["seen"]
        seen = seen + tokens if starts is None else documents.places(starts, seen, axes.seq)[1]
        table = self._table_like(before, batch)
        streams = _map(lambda param, leaf: _split(param, leaf, own), table, after)
        return y, {"seen": seen, "streams": streams}

    def own(self, axes: Axes) -> int:
        """Streams of this device."""
        return self.streams // collectives.axis_size(axes.of("stream"))

    def inside(self, axes: Axes) -> Axes:
        """The axes as the inner layer knows them."""
        return axes if self.streams == 1 else dataclasses.replace(axes, streams=self.own(axes))

    def shared(self, params: Params, axes: Axes) -> Params:
        """Parameters as streams use them, those around this layer's own as they are.

        Starts are made whole, since they have an axis `layer`. Of what streams share gradients are
        summed over their devices once, here.
        """
        if self.streams == 1:
            return params
        found = {**params, "starts": zero.whole(params["starts"])}
        if (axis := axes.of("stream")) is not None:
            own = {name: params[name] for name in self.inner.table()}
            found |= jax.tree.map(lambda p: collectives.as_varying(p, axis), own)
        return found

    def as_rows(self, x: Float[Array, "B T D"], axes: Axes) -> Float[Array, "pB T D"]:
        """What each stream of this device is given, as rows."""
        if self.streams == 1:
            return x
        if (axis := axes.of("stream")) is not None:
            x = collectives.as_varying(x, axis)
        return jnp.broadcast_to(x, (self.own(axes), *x.shape)).reshape(-1, *x.shape[1:])

    def begin(
        self,
        learned: Params,
        carry: Carry | None,
        batch: int,
        starts: Bool[Array, "B T"] | None,
        axes: Axes,
    ) -> tuple[Carry, Bool[Array, "pB T"] | None]:
        """The carry of the inner layer before the call, and where documents begin in its rows.

        Args:
          learned: the parameters `starts`, see `shared`.
          carry: of this layer, without pairs.
          batch: rows of this device, of one stream.
          starts: where documents begin.
          axes: mesh axes.
        """
        if self.streams == 1:
            return carry, starts
        own = self.own(axes)
        before, begin = self._begin(learned, carry, own * batch, self.inside(axes))
        if starts is None:
            return before, None
        return paired(before, begin), jnp.tile(starts, (own, 1))

    def sequences(self, carry: Carry) -> Carry:
        """The carry of the inner layer: streams are rows, as it sees them."""
        if self.streams == 1:
            return carry
        return _map(_join, self._table_like(carry["streams"], 1), carry["streams"])

    def _table_like(self, carry: Carry, batch: int) -> Any:
        """The table of the inner carry, apart if that is."""
        table = self.varied.carry_table(batch)
        return self.varied.apart(table, lambda p, _: one_of_stack(p)) if _is_apart(carry) else table

    def first(self, params: Params, streams: int) -> Params:
        """What the first of P streams have: their starts, and the aggregator over them alone.

        One stream is the inner layer, which begins as it did without streams.

        Raises:
          ValueError: more streams than there are.
        """
        if not 1 <= streams <= self.streams:
            raise ValueError(f"there are {self.streams} streams: {streams} cannot be taken of them")
        own = OWN if streams == 1 else ()
        kept = {name: params[name] for name in params if name not in own}
        if streams in (1, self.streams):
            return kept
        counted = {"w_in": 0, "w_out": 1, "b_out": 0}

        def cut(x: Array, axis: int) -> Array:
            return jax.lax.slice_in_dim(x, 0, streams, axis=axis)

        starts = {
            name: cut(kept["starts"][name], param.axes.index("batch"))
            for name, param in self._starts().items()
        }
        aggregator = {
            name: cut(x, counted[name]) if name in counted else x
            for name, x in kept["aggregator"].items()
        }
        return {**kept, "starts": starts, "aggregator": aggregator}

    def _begin(
        self, starts: Params, carry: Carry | None, rows: int, axes: Axes
    ) -> tuple[Carry, Any]:
        """The inner carry [P B, ...], as left or the learned start; what documents begin with.

        That is None in the place of zeros, and of what stays: every document sees it.
        """

        def learned(path: Any, param: Param) -> Array | None:
            if param.cache or _name(path) not in starts:
                return None
            start = starts[_name(path)].astype(param.dtype)
            return jnp.repeat(start, rows // axes.streams, axis=param.axes.index("batch"))

        def anew(path: Any, _: Param, start: Array | None) -> Array | None:
            return None if _name(path).endswith(STAYING) else start

        table = self.varied.carry_table(rows)
        begin = jax.tree_util.tree_map_with_path(learned, table, is_leaf=_is_param)
        each = jax.tree_util.tree_map_with_path(anew, table, begin, is_leaf=_is_param)
        if carry is None:

            def begun_with(param: Param, zero: Array, start: Array | None) -> Array | None:
                return (None if param.cache else zero) if start is None else start

            return _map(begun_with, table, self.varied.carry(rows, axes), begin), each
        left = self.sequences(carry)
        if _is_apart(left):
            table = self._table_like(left, rows)
            begin, each = (self.varied.apart(x, lambda x, i: x[i]) for x in (begin, each))
        begun = jnp.tile(carry["seen"] > 0, axes.streams)

        def chosen(param: Param, x: Array, start: Array | None) -> Array:
            if start is None:
                return x
            behind = x.ndim - 1 - param.axes.index("batch")
            return jnp.where(begun.reshape(-1, *(1,) * behind), x, start)

        return _map(chosen, table, left, begin), each

    def mixed(
        self, params: Params, rows: Float[Array, "pB T D"], axes: Axes
    ) -> Float[Array, "B T D"]:
        """The streams weighed, softmax and sum in float32; this device has p of them.

        Args:
          params: of the aggregator.
          rows: outputs of the inner layer.
          axes: mesh axes.
        """
        axis, own, dtype = axes.of("stream"), self.own(axes), rows.dtype
        hidden = rows.reshape(own, -1, rows.shape[-1])
        w_in, w_out = params["w_in"].astype(dtype), params["w_out"].astype(dtype)
        inside = jnp.einsum("pnd,pde->ne", hidden, w_in, preferred_element_type=jnp.float32)
        inside = collectives.psum(inside.astype(dtype), axis) + params["b_in"].astype(dtype)
        scores = linear(jax.nn.silu(inside), w_out).astype(jnp.float32) + params["b_out"]
        even = self.smoothing / self.streams
        weights = (1 - self.smoothing) * jax.nn.softmax(scores, axis=-1) + even
        weights = collectives.own_shard(weights, axis, dim=1)
        y = jnp.einsum("np,pnd->nd", weights, hidden, preferred_element_type=jnp.float32)
        y = collectives.psum(y.astype(dtype), axis)
        return y.reshape(rows.shape[0] // own, *rows.shape[1:])

    def _starts(self) -> dict[str, Param]:
        """The parts of the inner carry that can be learned, [P, ...], by their paths."""
        table = self.varied.carry_table(self.streams)
        leaves, _ = jax.tree_util.tree_flatten_with_path(
            table, is_leaf=lambda leaf: isinstance(leaf, (Param, Statistics))
        )
        found = {_name(path): param for path, param in leaves if isinstance(param, Param)}
        return {
            name: param
            for name, param in found.items()
            if param.dtype == "float32" and not param.cache and 0 not in param.shape
        }


def with_starts(layer: LayerType, prefix: int, offset: bool) -> LayerType:
    """`layer` with these in every field of their names, inside too, that has none."""
    wanted = {"prefix": prefix, "offset": offset}
    names = (field.name for field in dataclasses.fields(layer))  # type: ignore[arg-type]
    missing = {name: wanted[name] for name in names if name in wanted and not getattr(layer, name)}
    return with_held(layer, lambda inner: with_starts(inner, prefix, offset), **missing)


def _name(path: Any) -> str:
    return path_name(path).replace("/", ".") or "carry"


def _is_apart(carry: Carry) -> bool:
    """Whether stacked blocks have a carry each, see `Layer.apart`."""
    leaves = jax.tree.leaves(carry, is_leaf=lambda part: isinstance(part, Apart))
    return any(isinstance(part, Apart) for part in leaves)


def _is_param(leaf: object) -> bool:
    return isinstance(leaf, Param)


def _map(function: Any, table: Any, *rest: Any) -> Any:
    return jax.tree.map(function, table, *rest, is_leaf=_is_param)


def _of_streams(param: Param) -> tuple[str | None, ...]:
    return tuple("stream" if axis == "batch" else axis for axis in param.axes)


def _split(param: Param, leaf: Any, own: int) -> Any:
    """[..., P B, ...] as [..., P, B, ...]."""
    if "batch" not in param.axes:
        return leaf
    at = param.axes.index("batch")
    if isinstance(leaf, Pages):
        return leaf.split_streams(at, own)
    rows = leaf.shape[at] // own  # of an empty array -1 says nothing
    return leaf.reshape(*leaf.shape[:at], own, rows, *leaf.shape[at + 1 :])


def _join(param: Param, leaf: Any) -> Any:
    """The inverse of `_split`."""
    if "batch" not in param.axes:
        return leaf
    at = param.axes.index("batch")
    if isinstance(leaf, Pages):
        return leaf.join_streams(at)
    rows = leaf.shape[at] * leaf.shape[at + 1]
    return leaf.reshape(*leaf.shape[:at], rows, *leaf.shape[at + 2 :])
