"""The parameter table: each parameter declared once, everything else read from it.

A table is a nested dict whose leaves are `Param`. Parameters are the same dict with arrays in
their place. Initial values, abstract shapes, partition specs, counts and decay masks come from
the table, so that no other code restates a shape.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array

from sharding import collectives, zero
from sharding.axes import Axes
from sharding.layout import Layout
from sharding.quantised import Bits

FLOAT32 = "float32"

Initializer = Callable[[Array, tuple[int, ...]], Array]
Table = Mapping[str, Any]
"""str -> Param or Table."""
Params = Mapping[str, Any]
"""str -> Array or Params, in the shape of a Table."""


@dataclasses.dataclass(frozen=True)
class Param:
    """One parameter.

    Attributes:
      shape: its global shape.
      axes: a logical axis name (or None) for each dimension, see `sharding.rules`.
      init: makes the initial values: (key, shape) -> float32 array. An entry of a layer's carry
        (`Layer.carry_table`) begins as zeros whatever is said here. There, `init` is used by
        `ParScale` alone: it learns a start for each stream, drawn with this, or from a narrow
        normal distribution where this is `zeros`.
      decay: whether weight decay applies (matrices yes; biases, norms no).
      dtype: of the array. A layer declares float32, and a model decides how parameters are stored
        (`Model.param_dtype`); a carry may hold int32, such as a position.
      cache: for an entry of a carry: it is filled as tokens come, as a KV cache is, so a sequence
        cannot begin with a learned value here. At a start the layer is given None for it, see
        `Layer.begun`.
      precise: whether it stays float32 where a model's arithmetic, or what it stores, is in
        another type.
      pads: the axis that the model's program pads with nothing where a mesh axis does not divide
        it; the parameter is then stored whole along it, and no padding is in it. Another axis that
        is not divided is refused.
      sign_step: 0 for a parameter that the optimizer trains. Otherwise each update moves the value
        by this much against the sign of what stands in its gradient's place, whatever the
        optimizer. That may be a count rather than a gradient, see `ops.counted`: the balance bias
        of a mixture of experts follows its expert's load so.
      average: likewise, and each update moves the value by this part of what stands there: by how
        much that which the layer counts, such as the mean of its inputs, differs from the value,
        see `ops.counted.averaged`. So the value is a running average. Workers (`train.local`) go
        on from the mean of theirs, whatever they make of other parameters.
      transposed: whether a matrix stands here as outputs x inputs. Others are inputs x outputs.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    decay: bool = True
    dtype: str = "float32"
    cache: bool = False
    precise: bool = False
    pads: str = ""
    sign_step: float = 0.0
    average: float = 0.0
    transposed: bool = False

    def __post_init__(self) -> None:
        if self.sign_step and self.average:
            raise ValueError("a parameter follows a sign or is an average, not both")
        if len(self.shape) != len(self.axes):
            raise ValueError(f"shape {self.shape} and axes {self.axes} differ in length")


def zeros(key: Array, shape: tuple[int, ...]) -> Array:
    """All zeros."""
    return jnp.zeros(shape, jnp.float32)


def ones(key: Array, shape: tuple[int, ...]) -> Array:
    """All ones."""
    return jnp.ones(shape, jnp.float32)


def normal(std: float) -> Initializer:
    """N(0, std^2)."""
    return lambda key, shape: std * jax.random.normal(key, shape, jnp.float32)


def uniform(bound: float) -> Initializer:
    """U(-bound, bound)."""
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def fan_in(size: int) -> Initializer:
    """U(+-1/sqrt(size)), what PyTorch gives weights and biases of a layer with `size` inputs."""
    return uniform(1 / math.sqrt(size))


def _is_param(leaf: object) -> bool:
    return isinstance(leaf, Param)


def _map(function: Callable[..., Any], table: Table, *rest: Any) -> Any:
    return jax.tree.map(function, table, *rest, is_leaf=_is_param)


def _map_with_name(function: Callable[[str, Param], Any], table: Table) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, param: function(path_name(path), param), table, is_leaf=_is_param
    )


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as text: ("blocks", "ffn", "w_in") is "blocks/ffn/w_in"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def names_of(table: Table) -> list[str]:
    """The paths of all parameters, as `path_name` writes them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(table, _is_param)
    return [path_name(path) for path, _ in leaves]


def init_params(table: Table, key: Array) -> Params:
    """Initial values, float32. A parameter's value depends on the key and on its path alone."""
    numbers = np.array([zlib.crc32(name.encode()) for name in names_of(table)], np.uint32)
    keys = iter(_folded(key, numbers))
    return _map(lambda param: param.init(next(keys), param.shape), table)


@jax.jit
def _folded(key: Array, numbers: Array) -> Array:
    """A key for each number, in a loop: a vmap would make others of JAX's "unsafe_rbg" keys."""
    return jax.lax.map(lambda number: jax.random.fold_in(key, number), numbers)


def abstract_params(table: Table) -> Params:
    """Shapes and dtypes without values."""
    return _map(lambda param: jax.ShapeDtypeStruct(param.shape, param.dtype), table)


def param_specs(table: Table, layout: Layout) -> Any:
    """How each parameter lies on the mesh between steps; a UserError where it does not fit."""
    return stored_specs(table, layout, layout.weight_axes)


def rule_specs(table: Table, layout: Layout) -> Any:
    """How the rules alone split each parameter: what a layer is given."""
    return _map_with_name(
        lambda name, param: layout.spec(name, param.shape, _stored_axes(param, layout)), table
    )


def gradient_specs(table: Table, layout: Layout) -> Any:
    """How gradients lie on the mesh: as the optimizer's state; of what has none a 0."""
    return _map(
        lambda param, spec: PartitionSpec() if is_fixed(param) else spec,
        table,
        stored_specs(table, layout),
    )


def stored_specs(table: Table, layout: Layout, over: Sequence[str] | None = None) -> Any:
    """How the optimizer's state for each parameter lies on the mesh: ZeRO splits it further.

    Args:
      table: of the parameters.
      layout: the mesh and its uses.
      over: the mesh axes that ZeRO splits over, see `Layout.stored_spec`; its own if None.
    """

    def one(name: str, param: Param) -> PartitionSpec:
        return layout.stored_spec(name, param.shape, _stored_axes(param, layout), over)

    return _map_with_name(one, table)


def shard_dims(table: Table, layout: Layout) -> Any:
    """The dimension of each parameter that ZeRO splits, counted from the end; 0 for none."""
    return _map_with_name(
        lambda name, param: layout.shard_dim(name, param.shape, _stored_axes(param, layout)), table
    )


def codings(table: Table, layout: Layout) -> Any:
    """How each parameter and its gradient are sent where `layout` asks for few bits.

    Those that stay precise or follow counts, and those of one dimension a layer (biases, scales of
    norms), are sent as they are.
    """

    def one(param: Param) -> zero.Coding:
        layers = len([*itertools.takewhile(lambda axis: axis == "layer", param.axes)])
        few = not param.precise and not is_counted(param) and len(param.shape) - layers > 1
        return zero.Coding(layout.bits if few else Bits(), layers)

    return _map(one, table)


def _stored_axes(param: Param, layout: Layout) -> tuple[str | None, ...]:
    """The axes of a parameter without the one that is padded in the program alone."""
    split = layout.axes.of(param.pads)
    parts = layout.mesh.shape[split] if split else 1
    return tuple(
        None if axis == param.pads and size % parts else axis
        for size, axis in zip(param.shape, param.axes, strict=True)
    )


def gathered(table: Table, params: Any) -> Any:
    """Parameters in shards made whole, but for those of stacked layers.

    A parameter whose first axis is `layer` stays in shards: `Stack` gathers it layer by layer.
    """

    def one(param: Param, value: Any) -> Any:
        return value if param.axes[:1] == ("layer",) else zero.whole(value)

    return _map(one, table, params)


def shardings(specs: Any, layout: Layout) -> Any:
    """A NamedSharding for each PartitionSpec."""
    return jax.tree.map(lambda spec: NamedSharding(layout.mesh, spec), specs)


def decay_mask(table: Table) -> Any:
    """A bool for each parameter: does weight decay apply?"""
    return _map(lambda param: param.decay, table)


def trained_mask(table: Table) -> Any:
    """A bool for each parameter: does the optimizer move it?"""
    return _map(lambda param: not is_counted(param), table)


def stacked_mask(table: Table) -> Any:
    """A bool for each parameter: is its first axis that of stacked layers?"""
    return _map(lambda param: param.axes[:1] == ("layer",), table)


def without_counted(table: Table, grads: Any) -> Any:
    """Gradients; zeros for those parameters that follow counts, where they are none."""
    return _map(lambda param, x: jnp.zeros_like(x) if is_counted(param) else x, table, grads)


def mean_of_counted(table: Table, grads: Any, parts: int) -> Any:
    """Gradients; what parts of a batch have summed for a parameter that follows counts, averaged.

    It is no gradient, so it does not shrink with a part's share of the whole batch.
    """
    return _map(lambda param, x: x / parts if is_counted(param) else x, table, grads)


def with_counted(table: Table, updates: Any, found: Any) -> Any:
    """The optimizer's updates, but for parameters that follow counts.

    Args:
      table: of the parameters.
      updates: the optimizer's.
      found: what stands in the gradients' places.
    """

    def one(param: Param, update: Array, found: Array) -> Array:
        if param.sign_step:
            return -param.sign_step * jnp.sign(found)
        return param.average * found if param.average else update

    return _map(one, table, updates, found)


def with_averages(table: Table, params: Any, averages: Any) -> Any:
    """Parameters, but running averages as in `averages`."""
    return _map(lambda param, x, own: own if param.average else x, table, params, averages)


def any_average(table: Table) -> bool:
    """Whether any parameter is a running average."""
    return any(param.average for param in jax.tree.leaves(table, is_leaf=_is_param))


def any_counted(table: Table) -> bool:
    """Whether any parameter follows counts."""
    return any(map(is_counted, jax.tree.leaves(table, is_leaf=_is_param)))


def is_counted(param: Param) -> bool:
    """Whether a parameter follows what its layer counts, and not its gradient."""
    return bool(param.sign_step or param.average)


def cast(table: Table, params: Params, dtype: DTypeLike) -> Params:
    """Parameters in the type of the arithmetic, but for those that stay precise."""

    def one(param: Param, value: Any) -> Any:
        return value if param.precise else jax.tree.map(lambda x: _as_float(x, dtype), value)

    return _map(one, table, params)


def in_caches(dtype: DTypeLike, table: Any, carry: Any) -> Any:
    """A carry whose caches have that dtype; what a recurrence sums up keeps its own."""
    return _map(lambda param, x: x.astype(dtype) if param.cache else x, table, carry)


def precise(table: Table) -> Table:
    """The table, each parameter marked as one that stays float32."""
    return _map(lambda param: dataclasses.replace(param, precise=True), table)


def stored_as(table: Table, dtype: str) -> Table:
    """The table with the dtype in which parameters are stored, but for those that stay precise."""
    return _map(
        lambda param: param if param.precise else dataclasses.replace(param, dtype=dtype), table
    )


def stored_dtypes(table: Table) -> Any:
    """The dtype of each parameter, by name."""
    return _map(lambda param: param.dtype, table)


def round_to(params: Params, dtypes: Any) -> Params:
    """Parameters, each in its dtype."""
    return jax.tree.map(lambda x, dtype: x.astype(dtype), params, dtypes)


def widened(params: Any) -> Any:
    """Parameters in float32, whatever they are stored in: no value changes."""
    return jax.tree.map(lambda x: _as_float(x, FLOAT32), params)


def _as_float(x: Array, dtype: DTypeLike) -> Array:
    """In that dtype, but for bytes in which parameters are sent (`zero.Shard`)."""
    return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def is_fixed(param: Param) -> bool:
    """Whether nothing is differentiated by it: a mask, which is no number."""
    return param.dtype == "bool"


def movable(table: Table, tree: Any) -> list[Any]:
    """What a tree has in the places of the parameters that are differentiated by."""
    places = jax.tree.leaves(table, is_leaf=_is_param)
    leaves = jax.tree.structure(_map(lambda _: 0, table)).flatten_up_to(tree)
    return [leaf for leaf, param in zip(leaves, places, strict=True) if not is_fixed(param)]


def with_movable(table: Table, found: Sequence[Any], fixed: Callable[[Any], Any], tree: Any) -> Any:
    """The inverse of `movable`.

    Args:
      table: of the parameters.
      found: one for each that is differentiated by.
      fixed: makes of a leaf of `tree` what stands for one that is not.
      tree: in the shape of the parameters.
    """
    left = iter(found)
    return _map(lambda param, leaf: fixed(leaf) if is_fixed(param) else next(left), table, tree)


def count_params(table: Table, chosen: int | None = None) -> int:
    """How many numbers the table holds.

    Args:
      table: of a layer or model.
      chosen: counts only that many of the experts along each axis `expert`: what a token uses.
    """

    def count(param: Param) -> int:
        if is_fixed(param):
            return 0
        sizes = zip(param.shape, param.axes, strict=True)
        return math.prod(chosen if chosen and axis == "expert" else n for n, axis in sizes)

    return sum(map(count, jax.tree.leaves(table, is_leaf=_is_param)))


def stack(table: Table, depth: int, axis: str = "layer") -> Table:
    """The table of `depth` equal layers, each parameter with a leading axis of that name."""
    return _map(
        lambda param: dataclasses.replace(
            param, shape=(depth, *param.shape), axes=(axis, *param.axes)
        ),
        table,
    )


def one_of_stack(param: Param) -> Param:
    """That of one of stacked layers."""
    return dataclasses.replace(param, shape=param.shape[1:], axes=param.axes[1:])


def zero_shards(table: Any, axes: Axes) -> Any:
    """Zeros in the shapes of a carry's table, this device's part; rows are its own already."""

    def start(param: Param) -> Array:
        split = [axes.of(axis) if axis else None for axis in param.axes]
        once = [axis if axis not in split[:place] else None for place, axis in enumerate(split)]
        parts = [collectives.axis_size(axis) for axis in once]
        shape = [size // part for size, part in zip(param.shape, parts, strict=True)]
        return jnp.zeros(shape, param.dtype)

    return _map(start, table)


def carry_specs(table: Any, layout: Layout, rows: tuple[str, ...] = ()) -> Any:
    """How a carry lies on the mesh; its rows are split over `rows`."""

    def spec(name: str, param: Param) -> PartitionSpec:
        entries = layout.spec(f"carry {name}", param.shape, param.axes)
        pairs = zip(entries, param.axes, strict=True)
        return PartitionSpec(
            *((rows or None) if axis == "batch" else entry for entry, axis in pairs)
        )

    return _map_with_name(spec, table)


def rows_where(table: Any, rows: Array, chosen: Any, other: Any) -> Any:
    """A carry with the rows of `chosen` where `rows`, bool [B], says so, else those of `other`.

    Args:
      table: of the carry: it says which axis of an array is that of rows.
      rows: for this device's rows.
      chosen: a carry.
      other: another, of the same shapes.
    """

    def one(param: Param, x: Array, y: Array) -> Array:
        behind = x.ndim - 1 - param.axes.index("batch")
        return jnp.where(rows.reshape(-1, *(1,) * behind), x, y)

    return _map(one, table, chosen, other)
