"""Pictures as overlapping patches, and what a hole finds among the patches around it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sharding.errors import UserError

SIDE = 3
"""Of a patch."""
SCOPE = "patches"
"""Name of the scope of the products of patches, for those who count operations."""
SHARPNESS = 50.0
"""What scores are multiplied by, before their softmax."""


def patches(x: Float[Array, "B H W C"], pad: int = 0) -> Float[Array, "B P 9C"]:
    """The 3 x 3 patches around every place, row after row; with `pad` zeros beyond the edges."""
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = (size - SIDE + 1 for size in x.shape[1:3])
    shifted = [x[:, a : a + rows, b : b + columns] for a in range(SIDE) for b in range(SIDE)]
    return jnp.concatenate(shifted, -1).reshape(len(x), rows * columns, -1)


def overlapped(found: Float[Array, "B P 9C"], height: int, width: int) -> Float[Array, "B H W C"]:
    """The sum of patches laid around every place, without what lies beyond the edges."""
    parts = found.reshape(len(found), height, width, SIDE * SIDE, -1)
    total = jnp.zeros((len(found), height + 2, width + 2, parts.shape[-1]), found.dtype)
    for number in range(SIDE * SIDE):
        a, b = divmod(number, SIDE)
        total = total.at[:, a : a + height, b : b + width].add(parts[..., number, :])
    return total[:, 1:-1, 1:-1]


def contextual(
    x: Float[Array, "B H W C"], known: Float[Array, "B H W 1"]
) -> Float[Array, "B H W C"]:
    """Features as they are where they are known, elsewhere made of the patches that fit.

    Keys are the patches of x known that lie inside the picture, queries the patches of x around
    every place. The squared distances of a query are standardised over its keys, weights are
    softmax(-50 tanh(.)), and what they mix are the keys, overlapping, a ninth of each. Keys in the
    hole are not left out: they are zeros.

    Args:
      x: features.
      known: 1 where they are known, 0 in the hole.

    Raises:
      UserError: H or W is smaller than a patch.

    Source: PEPSI (arXiv 1905.09010), contextual attention with truncated distances.
    """
    if min(x.shape[1:3]) < SIDE:
        raise UserError(f"contextual: x {x.shape} holds no patch of {SIDE} x {SIDE}")
    with jax.named_scope(SCOPE):
        mixed = _mixed(patches(x * known), patches(x, pad=1))
    mixed = overlapped(mixed, *x.shape[1:3]) / SIDE**2
    return x * known + mixed * (1 - known)


def _mixed(keys: Float[Array, "B K P"], queries: Float[Array, "B Q P"]) -> Float[Array, "B Q P"]:
    size = jnp.sum(jnp.square(keys), -1)[:, None] + jnp.sum(jnp.square(queries), -1)[..., None]
    distance = size - 2 * queries @ jnp.swapaxes(keys, 1, 2)
    mean = jnp.mean(distance, -1, keepdims=True)
    # The variance of a picture without any difference is 0, and its root has no derivative.
    spread = jnp.sqrt(jnp.mean(jnp.square(distance - mean), -1, keepdims=True) + 1e-12)
    weights = jax.nn.softmax(-SHARPNESS * jnp.tanh((distance - mean) / spread), -1)
    return weights @ keys
