"""Systems with unit lower triangular matrices, in batched matrix products.

For (I + L) W = B the inverse of the whole is never made: rounding each of its numbers once is what
would be felt most. Rows are solved for in blocks, one block after another, as substitution does
(Golub and Van Loan, Matrix Computations, section 3.1), and only blocks on the diagonal are
inverted. Their smallest parts are inverted by substitution too: powers of L, whose numbers grow
and cancel, lose two digits where all keys are alike.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

BASE = 8
"""Blocks of this size and below are not halved any more."""
SOLVED = 16
"""Rows that are solved for at once."""


@jax.custom_vjp
def unit_lower_solve(
    lower: Float[Array, "*B C C"], right: Float[Array, "*B C M"]
) -> Float[Array, "*B C M"]:
    """W of (I + lower) W = right, of strictly lower triangular matrices; C is a power of two."""
    return _solve(lower, _inverse_blocks(lower), right)


def _forward(lower: Array, right: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    inverses = _inverse_blocks(lower)
    found = _solve(lower, inverses, right)
    return found, (lower, inverses, found)


def _backward(saved: tuple[Array, Array, Array], g: Array) -> tuple[Array, Array]:
    lower, inverses, found = saved
    to_right = _solve_turned(lower, inverses, g)
    return -jnp.tril(to_right @ jnp.swapaxes(found, -1, -2), -1), to_right


unit_lower_solve.defvjp(_forward, _backward)


def _solve(lower: Array, inverses: Array, right: Array) -> Array:
    """From the first rows to the last."""
    size = inverses.shape[-1]
    found = inverses[..., 0, :, :] @ right[..., :size, :]
    for block in range(1, inverses.shape[-3]):
        rows = slice(block * size, (block + 1) * size)
        left = right[..., rows, :] - lower[..., rows, : rows.start] @ found
        found = jnp.concatenate([found, inverses[..., block, :, :] @ left], axis=-2)
    return found


def _solve_turned(lower: Array, inverses: Array, right: Array) -> Array:
    """Of (I + lower)^T: from the last rows to the first."""
    lower, inverses = jnp.swapaxes(lower, -1, -2), jnp.swapaxes(inverses, -1, -2)
    size, last = inverses.shape[-1], inverses.shape[-3] - 1
    found = inverses[..., last, :, :] @ right[..., last * size :, :]
    for block in reversed(range(last)):
        rows = slice(block * size, (block + 1) * size)
        left = right[..., rows, :] - lower[..., rows, rows.stop :] @ found
        found = jnp.concatenate([inverses[..., block, :, :] @ left, found], axis=-2)
    return found


def _inverse_blocks(lower: Array) -> Array:
    """[..., M, s, s]: the inverses of I + `lower`'s blocks on the diagonal, s at most SOLVED.

    By halving: the inverse of [[A, 0], [B, D]] is [[A', 0], [-D' B A', D']].
    """
    size = min(BASE, lower.shape[-1])
    inverse = _small_inverse(_diagonal_blocks(lower, size, 0))
    while size < min(SOLVED, lower.shape[-1]):
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        below = _diagonal_blocks(lower, size, size)
        inverse = grow(inverse, -(second @ (below @ first)))
        size *= 2
    return inverse


def grow(diagonal: Float[Array, "*B M s s"], below: Float[Array, "*B M/2 s s"]) -> Array:
    """Lower triangular blocks [..., M/2, 2s, 2s] of pairs on the diagonal and what is below."""
    first, second = diagonal[..., 0::2, :, :], diagonal[..., 1::2, :, :]
    top = jnp.concatenate([first, jnp.zeros_like(below)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([below, second], axis=-1)], axis=-2)


def _diagonal_blocks(x: Array, size: int, down: int) -> Array:
    """[..., M, size, size]: blocks `down` rows under the diagonal, a block or every other one."""
    step = size + down
    starts = range(0, x.shape[-1], step)
    blocks = [x[..., i + down : i + down + size, i : i + size] for i in starts]
    return jnp.stack(blocks, axis=-3)


def _small_inverse(lower: Array) -> Array:
    """(I + lower)^-1 row by row, written out."""
    size = lower.shape[-1]
    eye = jnp.eye(size, dtype=lower.dtype)
    rows: list[Array] = []
    for i in range(size):
        row = jnp.broadcast_to(eye[i], (*lower.shape[:-2], size))
        for j, earlier in enumerate(rows):
            row = row - lower[..., i, j, None] * earlier
        rows.append(row)
    return jnp.stack(rows, axis=-2)
