"""The memory scan as `lax.associative_scan` over the tokens: depth log2 T, memory T K N."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gam_jax.ops.scan.layout import Inputs

Element = tuple[Array, Array]
"""What a stretch of tokens does to the state: its transition, and what it writes."""


def run(
    inputs: Inputs,
    state: Float[Array, "P R K N"],
    rule: str,
    chunk: int,
    backend: str | None = None,
) -> tuple[Float[Array, "P R T N"], Float[Array, "P R K N"]]:
    """Runs the memory scan as `lax.associative_scan`.

    Token t maps the state S to A_t S + W_t: A_t is its transition, W_t what it writes. Two tokens
    one after the other are the pair (A2 A1, A2 W1 + W2), and this product is associative. For
    "hebb" A is diagonal and held as its logarithm; for "delta" it is a K x K matrix. Only the
    inputs are stored for the backward pass. `chunk` and `backend` are not used.
    """
    elements, combine = (_delta, _compose) if rule == "delta" else (_hebb, _decay_and_add)

    def whole(inputs: Inputs, state: Array) -> tuple[Array, Array]:
        transitions, writes = elements(inputs)
        _, first = combine(
            (jnp.zeros(()), state), (transitions[..., 0, :, :], writes[..., 0, :, :])
        )
        writes = writes.at[..., 0, :, :].set(first)
        _, states = lax.associative_scan(combine, (transitions, writes), axis=2)
        y = jnp.einsum("...k,...kn->...n", inputs.q, states)
        return y, states[..., -1, :, :]

    return jax.checkpoint(whole)(inputs, state)


def _hebb(inputs: Inputs) -> Element:
    _, k, v, log_decay, beta, _ = inputs
    writes = k[..., :, None] * (v if beta is None else beta * v)[..., None, :]
    if log_decay is None:
        log_decay = jnp.zeros_like(v[..., :1])
    return log_decay[..., None], writes


def _decay_and_add(left: Element, right: Element) -> Element:
    return left[0] + right[0], jnp.exp(right[0]) * left[1] + right[1]


def _delta(inputs: Inputs) -> Element:
    _, k, v, log_decay, beta, _ = inputs
    bk = k if beta is None else beta * k
    transitions = jnp.eye(k.shape[-1]) - bk[..., :, None] * k[..., None, :]
    if log_decay is not None:  # decays first, so it scales columns
        transitions = transitions * jnp.exp(log_decay)[..., None, :]
    return transitions, bk[..., :, None] * v[..., None, :]


def _compose(left: Element, right: Element) -> Element:
    if left[0].ndim == 0:  # a state, not a stretch of tokens
        return left[0], right[0] @ left[1] + right[1]
    return right[0] @ left[0], right[0] @ left[1] + right[1]
