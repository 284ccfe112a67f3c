"""Products of 8-bit integers, digit by digit: exact, and with the digits counted.

An int8 number is a sum of four digits times powers of four; a product of matrices is then four
products with small digits, shifted and added. Hardware that takes one cycle a digit other than
zero is the faster the more digits are zero.

Source: "Exploring the Performance Improvement of Tensor Processing Engines through Transformation
in the Bit-weight Dimension of MACs" (HPCA 2025, arXiv 2503.06342), coding EN-T.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Int8, Int32

DIGITS, BASE = 4, 4


def digits(x: Int8[Array, "*shape"]) -> Int8[Array, "*shape 4"]:
    """The four signed digits of each number, the lowest first, each from -2 to 2.

    Of |x|, from the lowest digit up with a carry: t = digit + carry becomes t - 4 and carries 1
    if t is 3 or 4, else it stays and carries none. A negative number has all signs turned. So
    x = sum over w of 4^w d_w, for all 256 numbers.

    Raises:
      TypeError: x is no int8.
    """
    if x.dtype != jnp.int8:
        raise TypeError(f"digits: x is {x.dtype}: give int8")
    rest = jnp.abs(x.astype(jnp.int32))  # of -128 it is 128, which int8 does not hold
    sign = jnp.where(x < 0, -1, 1)
    carry = jnp.zeros_like(rest)
    found = []
    for _ in range(DIGITS):
        turn = rest % BASE + carry
        carry = (turn >= BASE - 1).astype(jnp.int32)
        found.append(sign * (turn - BASE * carry))
        rest = rest // BASE
    return jnp.stack(found, -1).astype(jnp.int8)


def booth_digits(x: Int8[Array, "*shape"]) -> Int8[Array, "*shape 4"]:
    """Booth's digits, radix four, for comparison: d_w = -2 b_(2w+1) + b_2w + b_(2w-1)."""
    bits = x.astype(jnp.int32)
    found = []
    for place in range(0, 2 * DIGITS, 2):
        low = (bits >> place - 1) & 1 if place else jnp.zeros_like(bits)
        found.append(low + ((bits >> place) & 1) - 2 * ((bits >> place + 1) & 1))
    return jnp.stack(found, -1).astype(jnp.int8)


def digit_matmul(a: Int8[Array, "M K"], b: Int8[Array, "K N"]) -> Int32[Array, "M N"]:
    """a @ b in int32, bit for bit: a sum over K for each digit's place first, then shifts.

    Raises:
      TypeError: an argument is no int8.
    """
    if b.dtype != jnp.int8:
        raise TypeError(f"digit_matmul: b is {b.dtype}: give int8")
    sliced = jnp.moveaxis(digits(a), -1, 0)  # [4, M, K]
    sums = lax.dot_general(sliced, b, (((2,), (0,)), ((), ())), preferred_element_type=jnp.int32)
    weights = BASE ** jnp.arange(DIGITS, dtype=jnp.int32)
    return jnp.einsum("w,wmn->mn", weights, sums)


def nonzero_digits(x: Int8[Array, "*shape"]) -> Int[Array, "*shape"]:
    """How many digits of each number are not zero: its cycles on digit-serial hardware."""
    return jnp.sum(digits(x) != 0, -1)


def cycles(products: float, digits_of_each: float) -> float:
    """Cycles of four-bit-pair lanes that skip zeros: products times digits / 4.

    Args:
      products: multiply-adds.
      digits_of_each: digits other than zero of an operand, on average.

    Returns:
      In units of what a multiplier of whole numbers takes for one product.
    """
    return products * digits_of_each / DIGITS
