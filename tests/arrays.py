"""Arrays that tests give to programs, and programs of what would run operation by operation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np


def put(values: Any, dtype: Any = None) -> jax.Array:
    """`values` of the host on the device; `jnp.asarray` would compile a program for each shape."""
    return jax.device_put(np.asarray(values, dtype))


def single(arrays: Iterable[Any]) -> list[jax.Array]:
    """Each as float32."""
    return [put(array, np.float32) for array in arrays]


def on_host(tree: Any) -> Any:
    """Arrays of NumPy: of these a program on a mesh cuts its shards without compiling each cut."""
    return jax.tree.map(np.asarray, tree)


@functools.partial(jax.jit, static_argnums=0)
def compiled(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` in one program; called plainly, each of its operations is one.

    It is compiled once for each function and for the shapes of its arguments.
    """
    return function(*args)


@functools.cache
def initial(model: Any, seed: int = 0) -> Any:
    """A model's initial parameters, which no case of a test may change."""
    return jax.jit(model.init_params)(jax.random.key(seed))
