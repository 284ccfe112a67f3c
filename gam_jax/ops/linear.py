"""Matrix products with a backward pass that suits XLA on CPU.

Operands are flat rows [N, D], which XLA multiplies faster on CPU than [B, T, D].
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sharding import collectives


def linear(
    x: Float[Array, "N D"], weight: Float[Array, "D F"], bias: Float[Array, F] | None = None
) -> Float[Array, "N F"]:
    """x weight + bias."""
    y = _product(*collectives.vary_alike(x, weight))
    return y if bias is None else y + bias


def linear_transposed(
    x: Float[Array, "N F"], weight: Float[Array, "D F"], dtype: DTypeLike | None = None
) -> Float[Array, "N D"]:
    """x weight^T, summed and given out in `dtype` (that of x if None)."""
    return _product_transposed(*collectives.vary_alike(x, weight), dtype or x.dtype)


def linear_flat(weight: Float[Array, "D ..."], x: Float[Array, "N D"]) -> Float[Array, "N F"]:
    """x weight, where F is all that a map makes: its axes but the first."""
    return linear(x, weight.reshape(weight.shape[0], -1))


def with_linear_flat(weight: Array, x: Float[Array, "N D"]) -> tuple[Array, Array]:
    """x itself, and `linear_flat`."""
    return x, linear_flat(weight, x)


def transposed_flat(weight: Float[Array, "D ..."], x: Float[Array, "N F"]) -> Float[Array, "N D"]:
    """x weight^T, where F is all axes of the weight but the first."""
    return linear_transposed(x, weight.reshape(weight.shape[0], -1))


def from_heads(weight: Float[Array, "H K D"], x: Float[Array, "N HK"]) -> Float[Array, "N D"]:
    """x weight, where x has all of H and K."""
    return linear(x, weight.reshape(-1, weight.shape[-1]))


def by_rows(function: Callable[[Any, Array], Any]) -> Callable[[Any, Array], Any]:
    """A function of rows [N, D] as one of tokens [B, T, D]: what it gives [N, F] is [B, T, F]."""

    def of_tokens(given: Any, x: Array) -> Any:
        found = function(given, x.reshape(-1, x.shape[-1]))
        return jax.tree.map(lambda y: y.reshape(*x.shape[:2], *y.shape[1:]), found)

    return of_tokens


def transposed_product(x: Float[Array, "N D"], g: Float[Array, "N F"]) -> Float[Array, "D F"]:
    """x^T g, the gradient of a weight, with x transposed in memory first.

    XLA's product on CPU loses more by reading its left side by columns than the transpose costs;
    the barrier keeps the compiler from folding it back. The narrower side should be on the left.
    """
    return jnp.dot(lax.optimization_barrier(x.T), g)


@jax.custom_vjp
def _product(x: Array, weight: Array) -> Array:
    return jnp.dot(x, weight)


def _product_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, weight = saved
    return jnp.dot(g, weight.T), transposed_product(x, g)


_product.defvjp(lambda x, weight: (_product(x, weight), (x, weight)), _product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product_transposed(x: Array, weight: Array, dtype: DTypeLike) -> Array:
    return jnp.dot(x, weight.T, preferred_element_type=dtype)


def _product_transposed_forward(
    x: Array, weight: Array, dtype: DTypeLike
) -> tuple[Array, tuple[Array, Array]]:
    return _product_transposed(x, weight, dtype), (x, weight)


def _product_transposed_backward(
    dtype: DTypeLike, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, weight = saved
    g = g.astype(x.dtype)
    return jnp.dot(g, weight), transposed_product(g, x)


_product_transposed.defvjp(_product_transposed_forward, _product_transposed_backward)
