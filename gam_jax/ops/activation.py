"""Activations."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


@jax.custom_jvp
def gelu(x: Float[Array, "*N"]) -> Float[Array, "*N"]:
    """x Phi(x), exact: Phi is the normal distribution function, through erf.

    Source: Hendrycks and Gimpel 2016 (arXiv 1606.08415). The derivative is written by hand,
    Phi(x) + x phi(x), which costs one erf and one exp.
    """
    return x * _normal_cdf(x)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    cdf = _normal_cdf(x)
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return x * cdf, (cdf + x * density) * dx
