"""One chunk of one head of the memory scan, in products of whole matrices, for kernels.

No array is cut, joined or turned: matrices of ones and zeros choose and add instead, which is what
compilers of kernels take. The equations are those of `chunks`, with their sources.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gam_jax.ops.scan.decays import LEAST

GONE = -1e4
"""Logarithm of a decay of 0 in a kernel: sums of it are finite, and exp of them is 0."""
INVERTED = 16
"""Rows of a block on the diagonal that is inverted, see `triangle`."""


EXACT = lax.Precision.HIGHEST
"""Of sums of logarithms, and of the system of the delta rule."""
_DIMS = {"": ((1,), (0,)), "left": ((0,), (0,)), "right": ((1,), (1,))}


class Part(NamedTuple):
    """A chunk of one head, in float32.

    Attributes:
      q, k: [C, K].
      v: [C, N].
      log_decay: [1, C] for one a token, [C, K] for one a key channel, at least GONE; or None.
      beta: [1, C] or None.
    """

    q: Array
    k: Array
    v: Array
    log_decay: Array | None
    beta: Array | None


def finite(log_decay: Array) -> Array:
    """Logarithms of decays as kernels have them, from those of `memory_scan`."""
    return jnp.where(log_decay < LEAST, GONE, log_decay)


def one_chunk(
    part: Part, state: Float[Array, "K N"], rule: str
) -> tuple[Float[Array, "C N"], Float[Array, "K N"]]:
    """What queries read, and the state after the chunk; see `memory_scan`."""
    q, k, v, log_decay, beta = part
    strength = 1.0 if beta is None else _column(beta)
    decays = _decays(k, log_decay)
    write = strength * v
    if rule == "delta":
        row, other = _places(k.shape[0])
        lower = jnp.where(other < row, strength * decays.products(k), 0.0)
        write = unit_lower_solve(lower, write - product(decays.start * (strength * k), state))
    y = product(decays.products(q), write) + product(decays.start * q, state)
    return y, decays.whole * state + product(decays.to_end * k, write, "left")


class _Decays(NamedTuple):
    """The decays inside a chunk: exp of the sum of logarithms between two places.

    No such sum is a difference of two: a slow decay after fast ones keeps its digits.

    Attributes:
      start: since the start of the chunk, up to each token; [C, 1 or K].
      to_end: after each token; [C, 1 or K].
      whole: of the chunk; [1 or K, 1].
      products: of x [C, K], x_i . k_j times the decay from j to i, 0 for j after i; [C, C].
    """

    start: Array | float
    to_end: Array | float
    whole: Array | float
    products: Callable[[Array], Array]


def _decays(k: Array, log_decay: Array | None) -> _Decays:
    if log_decay is None:
        row, other = _places(k.shape[0])
        return _Decays(
            1.0, 1.0, 1.0, lambda x: jnp.where(other <= row, product(x, k, "right"), 0.0)
        )
    return _by_token(k, log_decay) if log_decay.shape[0] == 1 else _by_channel(k, log_decay)


def _by_token(k: Array, log_decay: Float[Array, "1 C"]) -> _Decays:
    row, other = _places(k.shape[0])
    upto = jnp.where(other <= row, log_decay, 0.0)
    between = _sums(upto, other < row)
    pairs = jnp.where(other <= row, jnp.exp(between), 0.0)

    def total(log: Array) -> Array:
        return jnp.exp(jnp.sum(log, axis=1, keepdims=True))

    return _Decays(
        total(upto),
        total(jnp.where(other > row, log_decay, 0.0)),
        total(log_decay),
        lambda x: pairs * product(x, k, "right"),
    )


def _by_channel(k: Array, log_decay: Float[Array, "C K"]) -> _Decays:
    """A pair of places meets in the middle of the smallest halved block that has both.

    See `chunks._by_channel`: there the halves are cut out, here each level is a whole product in
    which the early half of each block has keys alone, and the late half queries.
    """
    size = k.shape[0]
    row, other = _places(size)
    levels = range((size - 1).bit_length())
    to_middle = [jnp.exp(_sums(_span(level, size), log_decay)) for level in levels]
    late = [(_column_places(size) >> level) & 1 == 1 for level in levels]

    def products(x: Array) -> Array:
        found = jnp.where(row == other, jnp.sum(x * k, axis=1, keepdims=True), 0.0)
        for level in levels:
            left = jnp.where(late[level], to_middle[level] * x, 0.0)
            right = jnp.where(late[level], 0.0, to_middle[level] * k)
            together = row >> level + 1 == other >> level + 1
            found += jnp.where(together, product(left, right, "right"), 0.0)
        return found

    whole = jnp.exp(jnp.sum(log_decay, axis=0, keepdims=True))
    start, to_end = (jnp.exp(_sums(which, log_decay)) for which in (other <= row, other > row))
    return _Decays(start, to_end, _column(whole), products)


def _span(level: int, size: int) -> Bool[Array, "C C"]:
    """Which tokens (columns) stand between a place and the middle of its block of 2^(level + 1)."""
    row, other = _places(size)
    middle = ((row >> level + 1) << level + 1) + 2**level - 1
    return (other > jnp.minimum(row, middle)) & (other <= jnp.maximum(row, middle))


def unit_lower_solve(lower: Float[Array, "C C"], right: Float[Array, "C N"]) -> Float[Array, "C N"]:
    """W of (I + lower) W = right, `lower` strictly lower triangular; see `triangle`."""
    return cast(Array, _solved(lower, right))


@jax.custom_vjp
def _solved(lower: Array, right: Array) -> Array:
    return _solve(lower, _inverse_blocks(lower), right, lower.shape[0])


def _forward(lower: Array, right: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    inverses = _inverse_blocks(lower)
    found = _solve(lower, inverses, right, lower.shape[0])
    return found, (lower, inverses, found)


def _backward(saved: tuple[Array, Array, Array], g: Array) -> tuple[Array, Array]:
    lower, inverses, found = saved
    to_right = _solve(lower, inverses, g, lower.shape[0], "left")
    row, other = _places(lower.shape[0])
    return jnp.where(other < row, -_exact(to_right, found, "right"), 0.0), to_right


_solved.defvjp(_forward, _backward)


def _solve(lower: Array, inverses: Array, right: Array, size: int, turned: str = "") -> Array:
    """The system with the blocks of `size` on the diagonal alone, by halving; turned if "left"."""
    if size <= INVERTED:
        return _exact(inverses, right, turned)
    level = (size // 2).bit_length() - 1
    found = _solve(lower, inverses, right, size // 2, turned)
    owed = _exact(_below(lower, level), found, turned)
    return found - _solve(lower, inverses, owed, size // 2, turned)


def _inverse_blocks(lower: Float[Array, "C C"]) -> Float[Array, "C C"]:
    """The inverses of I + `lower`'s blocks on the diagonal, in place, of at most INVERTED rows."""
    size = lower.shape[0]
    row, other = _places(size)
    inverse = jnp.where(row == other, 1.0, 0.0)
    for level in range(min((size - 1).bit_length(), INVERTED.bit_length() - 1)):
        below = _below(lower, level)
        inverse -= _exact(inverse, _exact(below, inverse)) if level else below
    return inverse


def _below(lower: Array, level: int) -> Array:
    """Of blocks of 2^(level + 1) on the diagonal what the late half owes to the early one."""
    row, other = _places(lower.shape[0])
    there = (row >> level + 1 == other >> level + 1) & (row >> level > other >> level)
    return jnp.where(there, lower, 0.0)


def _places(size: int) -> tuple[Int[Array, "C C"], Int[Array, "C C"]]:
    """The number of each row, and of each column."""
    shape = (size, size)
    return lax.broadcasted_iota(jnp.int32, shape, 0), lax.broadcasted_iota(jnp.int32, shape, 1)


def _column_places(size: int) -> Int[Array, "C 1"]:
    return lax.broadcasted_iota(jnp.int32, (size, 1), 0)


def _column(row: Float[Array, "1 C"]) -> Float[Array, "C 1"]:
    """A row, turned."""
    i, j = _places(row.shape[1])
    return jnp.sum(jnp.where(i == j, row, 0.0), axis=1, keepdims=True)


def _sums(left: Array, right: Array) -> Array:
    return product(left.astype(jnp.float32), right.astype(jnp.float32), "", EXACT)


def _dot(a: Array, b: Array, turned: str, precision: lax.Precision | None) -> Array:
    return lax.dot_general(a, b, (_DIMS[turned], ((), ())), precision=precision)


def _exact(a: Array, b: Array, turned: str = "") -> Array:
    return _dot(a, b, turned, EXACT)


def product(a: Array, b: Array, turned: str = "", precision: lax.Precision | None = None) -> Array:
    """a b, a^T b ("left") or a b^T ("right") of matrices; its derivatives turn no array either."""
    return cast(Array, _product(a, b, turned, precision))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(a: Array, b: Array, turned: str, precision: lax.Precision | None) -> Array:
    return _dot(a, b, turned, precision)


def _product_forward(
    a: Array, b: Array, turned: str, precision: lax.Precision | None
) -> tuple[Array, tuple[Array, Array]]:
    return _dot(a, b, turned, precision), (a, b)


def _product_backward(
    turned: str, precision: lax.Precision | None, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    a, b = saved
    by = {
        "": ((g, b, "right"), (a, g, "left")),
        "left": ((b, g, "right"), (a, g, "")),
        "right": ((g, b, ""), (g, a, "left")),
    }
    to_a, to_b = (_dot(*operands, precision) for operands in by[turned])
    return to_a, to_b


_product.defvjp(_product_forward, _product_backward)
