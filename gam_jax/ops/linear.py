"""Affine maps."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def linear(
    x: Float[Array, "N D"], weight: Float[Array, "D F"], bias: Float[Array, "F"] | None = None
) -> Float[Array, "N F"]:
    """x weight + bias, for flat rows: XLA multiplies those faster on CPU than [B, T, D]."""
    y = jnp.dot(x, weight)
    return y if bias is None else y + bias
