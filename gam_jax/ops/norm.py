"""Layer and root-mean-square normalisation."""

from __future__ import annotations

import functools

import jax
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
    scale, bias = (jnp.broadcast_to(_wide(a), x.shape[-1:]) for a in (scale, bias))
    y: Array = _layer_norm(eps, axis, *collectives.vary_alike(x, scale, bias))
    return y


def rms_norm(
    x: Float[Array, "*B D"], scale: Float[Array, D], eps: float = 1e-5, axis: str | None = None
) -> Float[Array, "*B D"]:
    """x / sqrt(mean(x^2) + eps) * scale over the last axis, in float32.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), eq. 4. Returns the dtype of x.

    `axis` is a mesh axis that splits D: the mean is then that of all its devices.
    """
    y: Array = _rms_norm(eps, axis, *collectives.vary_alike(x, _wide(scale)))
    return y


def _wide(x: Array) -> Array:
    """Float32: what devices sum of the gradient by a scale or a bias is not rounded before."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


# The backward passes make what is normed again from x, which is kept anyway: JAX's own would keep
# several arrays of its size.


def _mean(x: Array, axis: str | None) -> Float[Array, "*B 1"]:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    return collectives.psum(mean, axis) / collectives.axis_size(axis)


def _summed(x: Array, like: Array) -> Array:
    """The sum over the axes that `like` has not."""
    return jnp.sum(x, axis=range(x.ndim - like.ndim)).astype(like.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer_norm(eps: float, axis: str | None, x: Array, scale: Array, bias: Array) -> Array:
    return _layer_norm_forward(eps, axis, x, scale, bias)[0]


def _layer_norm_forward(
    eps: float, axis: str | None, x: Array, scale: Array, bias: Array
) -> tuple[Array, tuple[Array, ...]]:
    wide = x.astype(jnp.float32)
    mean = _mean(wide, axis)
    centred = wide - mean
    rate = lax.rsqrt(_mean(jnp.square(centred), axis) + eps)
    return (centred * rate * scale + bias).astype(x.dtype), (x, mean, rate, scale, bias)


def _layer_norm_backward(
    eps: float, axis: str | None, saved: tuple[Array, ...], g: Array
) -> tuple[Array, Array, Array]:
    x, mean, rate, scale, bias = saved
    g, normed = g.astype(jnp.float32), (x.astype(jnp.float32) - mean) * rate
    to_normed = g * scale
    own = normed * _mean(to_normed * normed, axis) + _mean(to_normed, axis)
    to_x = rate * (to_normed - own)
    return to_x.astype(x.dtype), _summed(g * normed, scale), _summed(g, bias)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rms_norm(eps: float, axis: str | None, x: Array, scale: Array) -> Array:
    return _rms_norm_forward(eps, axis, x, scale)[0]


def _rms_norm_forward(
    eps: float, axis: str | None, x: Array, scale: Array
) -> tuple[Array, tuple[Array, ...]]:
    wide = x.astype(jnp.float32)
    rate = lax.rsqrt(_mean(jnp.square(wide), axis) + eps)
    return (wide * rate * scale).astype(x.dtype), (x, rate, scale)


def _rms_norm_backward(
    eps: float, axis: str | None, saved: tuple[Array, ...], g: Array
) -> tuple[Array, Array]:
    x, rate, scale = saved
    g, normed = g.astype(jnp.float32), x.astype(jnp.float32) * rate
    to_normed = g * scale
    to_x = rate * (to_normed - normed * _mean(to_normed * normed, axis))
    return to_x.astype(x.dtype), _summed(g * normed, scale)


_rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def unit_norm(x: Float[Array, "*B D"], eps: float = 1e-6) -> Float[Array, "*B D"]:
    """x / sqrt(sum(x^2) + eps): vectors of length one, in float32. Returns the dtype of x."""
    wide = x.astype(jnp.float32)
    total = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * lax.rsqrt(total + eps)).astype(x.dtype)
