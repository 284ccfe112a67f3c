"""Rotary positions."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotary(
    x: Float[Array, "B T H K"], places: Int[Array, T], theta: float
) -> Float[Array, "B T H K"]:
    """Turns channel pairs (i, i + K/2) of each head by the angle place * theta^(-2i/K).

    The product of a turned query and a turned key depends on how far apart they stand alone.
    Source: Su et al. 2021, "RoFormer" (arXiv 2104.09864), eq. 34; pairs are the two halves of a
    head, as Hugging Face's Llama has them, not neighbours as in the paper.

    Args:
      x: queries or keys; K is even.
      places: of each token in the whole sequence.
      theta: base of the wavelengths, usually 10,000 or more.

    Returns:
      The dtype of x; angles in float32.
    """
    half = x.shape[-1] // 2
    speeds = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = places.astype(jnp.float32)[:, None, None] * speeds  # [T, 1, K/2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
