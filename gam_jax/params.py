"""The parameter table: each parameter declared once, everything else read from it.

A table is a nested dict whose leaves are `Param`. Parameters are the same dict with arrays in
their place. Initial values, abstract shapes, partition specs, counts and decay masks come from
the table, so that no other code restates a shape.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from sharding.rules import DEFAULT_RULES, Rules, partition_spec

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
      init: initialiser, (key, shape) -> float32 array.
      decay: whether weight decay applies (matrices yes; biases, norms no).
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Initializer
    decay: bool = True

    def __post_init__(self) -> None:
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


def init_params(table: Table, key: Array) -> Params:
    """Initial values, float32. A parameter's value depends on the key and on its path alone."""
    return _map_with_name(
        lambda name, param: param.init(
            jax.random.fold_in(key, zlib.crc32(name.encode())), param.shape
        ),
        table,
    )


def abstract_params(table: Table, mesh: Mesh | None = None, rules: Rules = DEFAULT_RULES) -> Params:
    """Shapes and dtypes (and, with a mesh, shardings) without values."""
    if mesh is None:
        return _map(lambda param: jax.ShapeDtypeStruct(param.shape, jnp.float32), table)
    return _map(
        lambda param, sharding: jax.ShapeDtypeStruct(param.shape, jnp.float32, sharding=sharding),
        table,
        param_shardings(table, mesh, rules),
    )


def param_specs(table: Table, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """A PartitionSpec for each parameter; a UserError where the mesh does not fit."""
    return _map_with_name(
        lambda name, param: partition_spec(name, param.shape, param.axes, mesh, rules), table
    )


def param_shardings(table: Table, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """A NamedSharding for each parameter."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), param_specs(table, mesh, rules))


def decay_mask(table: Table) -> Any:
    """A bool for each parameter: does weight decay apply?"""
    return _map(lambda param: param.decay, table)


def count_params(table: Table) -> int:
    """How many numbers the table holds."""
    leaves = jax.tree.leaves(table, is_leaf=_is_param)
    return sum(math.prod(param.shape) for param in leaves)


def stack(table: Table, depth: int) -> Table:
    """The table of `depth` equal layers, each parameter with a leading axis `layer`."""
    return _map(
        lambda param: dataclasses.replace(
            param, shape=(depth, *param.shape), axes=("layer", *param.axes)
        ),
        table,
    )
