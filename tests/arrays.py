"""Arrays that tests give to programs."""

from __future__ import annotations

from collections.abc import Iterable
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
