"""What a layer counts, in the place of a gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sharding import collectives


def counted(x: Array, param: Array, found: Array) -> Array:
    """Returns x unchanged. In the backward pass the gradient of `param` is `found`.

    For parameters on which no loss depends: the balance bias of experts, the running statistics of
    a batch norm. What is found is summed over devices as a gradient is, averaged over the parts of
    a batch, and moves the parameter as `Param.sign_step` or `Param.average` say. So running
    figures are parameters: saved, resumed, placed on a mesh and restored as all others.

    Args:
      x: what the loss depends on; any shape.
      param: the parameter.
      found: in its shape, this device's part of a sum over devices; no gradient goes through it.
    """
    param, found = collectives.vary_alike(param, found.astype(param.dtype))
    return _counted(x, param, found)


@jax.custom_vjp
def _counted(x: Array, param: Array, found: Array) -> Array:
    return x


_counted.defvjp(
    lambda x, param, found: (x, found), lambda found, g: (g, found, jnp.zeros_like(found))
)
