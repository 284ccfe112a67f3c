"""The memory scan token by token: the plain reference, and what decoding runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gam_jax.ops.scan.layout import Inputs


def step(
    state: Float[Array, "P R K N"], token: Inputs, rule: str
) -> tuple[Float[Array, "P R K N"], Float[Array, "P R N"]]:
    """One token [P, R, ...] is written and the memory read.

    The state decays first; then "hebb" adds beta k v^T, and "delta" moves what is stored under k
    towards v: S + beta k (v - S^T k)^T.
    """
    q, k, v, log_decay, beta, _ = token
    if log_decay is not None:
        state = jnp.exp(log_decay)[..., None] * state
    write = v - jnp.einsum("...k,...kn->...n", k, state) if rule == "delta" else v
    if beta is not None:
        write = beta * write
    state = state + k[..., :, None] * write[..., None, :]
    return state, jnp.einsum("...k,...kn->...n", q, state)


def run(
    inputs: Inputs,
    state: Float[Array, "P R K N"],
    rule: str,
    chunk: int,
    backend: str | None = None,
) -> tuple[Float[Array, "P R T N"], Float[Array, "P R K N"]]:
    """A scan over tokens. States are stored once a chunk and recomputed in the backward pass.

    `backend` is not used.
    """
    tokens = inputs.v.shape[-2]
    if tokens == 1:
        state, y = step(state, inputs.token(0), rule)
        return y[..., None, :], state
    padded = inputs.padded(chunk)

    def inside(state: Array, token: Inputs) -> tuple[Array, Array]:
        return step(state, token, rule)

    def over(state: Array, part: Inputs) -> tuple[Array, Array]:
        return lax.scan(inside, state, part)

    parts = padded.leading().split(chunk)
    state, y = lax.scan(jax.checkpoint(over, prevent_cse=False), state, parts)
    y = y.reshape(-1, *y.shape[2:])[:tokens]
    return jnp.moveaxis(y, 0, -2), state
