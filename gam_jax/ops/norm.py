"""Layer and root-mean-square normalisation."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sharding import collectives


def layer_norm(
    x: Float[Array, "*B D"],
    scale: Float[Array, D],
    bias: Float[Array, D],
    eps: float = 1e-5,
    axis: str | None = None,
) -> Float[Array, "*B D"]:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis, in float32.

    Source: Ba et al. 2016 (arXiv 1607.06450), eq. 3-4. Returns the dtype of x.

    `axis` is a mesh axis that splits D: mean and variance are then those of all its devices.
    """
    parts = collectives.axis_size(axis)
    wide = x.astype(jnp.float32)
    mean = collectives.psum(jnp.mean(wide, axis=-1, keepdims=True), axis) / parts
    centred = wide - mean
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    variance = collectives.psum(variance, axis) / parts
    return (centred * lax.rsqrt(variance + eps) * scale + bias).astype(x.dtype)


def rms_norm(
    x: Float[Array, "*B D"], scale: Float[Array, D], eps: float = 1e-5, axis: str | None = None
) -> Float[Array, "*B D"]:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), eq. 4. Returns the dtype of x.

    `axis` is a mesh axis that splits D: the mean is then that of all its devices.
    """
    wide = x.astype(jnp.float32)
    mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    mean = collectives.psum(mean, axis) / collectives.axis_size(axis)
    return (wide * lax.rsqrt(mean + eps) * scale).astype(x.dtype)


def unit_norm(x: Float[Array, "*B D"], eps: float = 1e-6) -> Float[Array, "*B D"]:
    """x / sqrt(sum(x^2) + eps): vectors of length one, in float32. Returns the dtype of x."""
    wide = x.astype(jnp.float32)
    total = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * lax.rsqrt(total + eps)).astype(x.dtype)
