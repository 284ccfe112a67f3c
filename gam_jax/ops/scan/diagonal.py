"""A linear recurrence of single numbers: h_t = decay_t h_{t-1} + write_t."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from gam_jax.ops.checks import check_choice
from gam_jax.ops.scan.decays import begun, running
from sharding import collectives
from sharding.exchange import prefix

DIAGONAL_METHODS = ("chunked", "associative", "recurrent")


def diagonal_scan(
    log_decay: Float[Array, "B T *S"],
    write: Float[Array, "B T *S"],
    *,
    state: Float[Array, B * S] | None = None,
    method: str = "chunked",
    chunk: int = 64,
    axis: str | None = None,
    starts: Bool[Array, "B T"] | None = None,
    begin: Float[Array, B * S] | None = None,
    backend: str | None = None,
) -> tuple[Float[Array, "B T *S"], Float[Array, B * S]]:
    """All states of h_t = exp(log_decay_t) h_{t-1} + write_t, and the last.

    Unlike `memory_scan` every number of the state has a decay of its own, and all states are
    given out. Float32 inside.

    Args:
      log_decay: at most 0; -inf for a decay of 0.
      write: what is added.
      state: what is carried in (before the first shard, where tokens are split); None for zeros.
      method: "chunked" runs all chunks side by side, token by token, then hands states from
        chunk to chunk, but on a processor, for which one after another is less work;
        "associative" is `lax.associative_scan`; "recurrent" token by token.
      chunk: tokens in a chunk.
      axis: mesh axis that splits the tokens. Each shard sends a decay and a state.
      starts: true where documents begin: there the state is `begin` before the token decays it.
        None where all tokens belong to one.
      begin: what documents begin with, like `state`; None for zeros.
      backend: where it will run, as "cpu"; None for JAX's default.

    Returns:
      states in the dtype of `write`, and the float32 state after the last token.

    Raises:
      UserError: an unknown method.
    """
    check_choice("diagonal_scan", "method", method, DIAGONAL_METHODS)
    if method == "chunked" and (backend or jax.default_backend()) == "cpu":
        method = "recurrent"
    dtype = write.dtype
    if state is None:
        state = jnp.zeros(write[:, 0].shape, jnp.float32)
    if starts is not None:
        if begin is not None:
            there = starts.reshape(*starts.shape, *(1,) * (write.ndim - 2))
            write = write + jnp.where(
                there, jnp.exp(log_decay.astype(jnp.float32)) * begin[:, None], 0
            )
        log_decay = begun(log_decay, starts)
    before = state.astype(jnp.float32)
    decays, writes = (
        jnp.moveaxis(x, 1, 0).astype(jnp.float32) for x in collectives.vary_alike(log_decay, write)
    )
    first = before if axis is None else jnp.zeros_like(before)
    decays, writes, first = collectives.vary_alike(decays, writes, first)
    states, last = _METHODS[method](decays, writes, first, chunk)
    if axis is not None:
        start = running(decays, 0).from_start()

        def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
            return left[0] * right[0], right[0] * left[1] + right[1]

        unit = jnp.ones(before.shape, jnp.float32)
        (_, before), (_, last) = prefix((start[-1], last), combine, axis, (unit, before))
        states = states + start * before
    return jnp.moveaxis(states, 0, 1).astype(dtype), last


def _step(state: Array, token: tuple[Array, Array]) -> tuple[Array, Array]:
    state = jnp.exp(token[0]) * state + token[1]
    return state, state


def _recurrent(log: Array, write: Array, state: Array, chunk: int) -> tuple[Array, Array]:
    state, states = lax.scan(_step, state, (log, write))
    return states, state


def _associative(log: Array, write: Array, state: Array, chunk: int) -> tuple[Array, Array]:
    def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] + right[0], jnp.exp(right[0]) * left[1] + right[1]

    write = write.at[0].add(jnp.exp(log[0]) * state)
    _, states = lax.associative_scan(combine, (log, write))
    return states, states[-1]


def _chunked(log: Array, write: Array, state: Array, chunk: int) -> tuple[Array, Array]:
    tokens = write.shape[0]
    if tokens <= chunk:
        return _recurrent(log, write, state, chunk)
    missing = -tokens % chunk

    def chunks(x: Array) -> Array:  # [T, ...] as [C, T / C, ...]
        x = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
        return jnp.moveaxis(x.reshape(-1, chunk, *x.shape[1:]), 1, 0)

    log, write = chunks(log), chunks(write)
    own, states = lax.scan(_step, jnp.zeros_like(write[0]), (log, write))
    start = running(log, 0).from_start()

    def hand_on(state: Array, parts: tuple[Array, Array]) -> tuple[Array, Array]:
        return parts[0] * state + parts[1], state

    last, before = lax.scan(hand_on, state, (start[-1], own))
    states = jnp.moveaxis(states + start * before, 0, 1)
    return states.reshape(-1, *states.shape[2:])[:tokens], last


_METHODS = {"chunked": _chunked, "associative": _associative, "recurrent": _recurrent}
