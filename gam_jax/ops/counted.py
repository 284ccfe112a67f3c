"""What a layer counts, in the place of a gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sharding import collectives


def counted(x: Array, param: Array, found: Array) -> Array:
    """Returns x unchanged. In the backward pass the gradient of `param` is `found`.

    For parameters on which no loss depends: the balance bias of experts, the running statistics of
    a batch norm (`averaged`). What is found is summed over devices, and over the calls of a layer
    that is used several times, as a gradient is. It is averaged over the parts of a batch, and
    moves the parameter as `Param.sign_step` or `Param.average` say. Where no loss depends on what
    is returned nothing is found: it is 0. So running figures are parameters: saved, resumed, placed
    on a mesh and restored as all others.

    Args:
      x: what the loss depends on; any shape.
      param: the parameter.
      found: in its shape, this device's part of a sum over devices; no gradient goes through it.
    """
    param, found = collectives.vary_alike(param, found.astype(param.dtype))
    return _counted(x, param, found)


def averaged(x: Array, param: Array, found: Array, axes: Sequence[str]) -> Array:
    """Returns x unchanged; `param` is a running average of `found`, see `Param.average`.

    What stands in the gradient's place is by how much `found` differs from the parameter. So a
    layer that is used twice moves it towards the mean of what both uses find, and one on which no
    loss depends leaves it.

    Args:
      x: what the loss depends on; any shape.
      param: the parameter.
      found: in its shape, this device's part of a sum over the devices of `axes`.
      axes: mesh axes that a batch is spread over.
    """
    parts = math.prod(collectives.axis_size(axis) for axis in axes)
    return counted(x, param, found.astype(param.dtype) - param / parts)


@jax.custom_vjp
def _counted(x: Array, param: Array, found: Array) -> Array:
    return x


_counted.defvjp(
    lambda x, param, found: (x, found), lambda found, g: (g, found, jnp.zeros_like(found))
)
