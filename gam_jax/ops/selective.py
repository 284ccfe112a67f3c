"""The selective scan of Mamba: a diagonal state space whose step depends on the token."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from gam_jax.ops.checks import (
    check_choice,
    check_chunk,
    check_shape,
    check_starts,
    check_tokens,
)
from sharding import collectives
from sharding.errors import UserError
from sharding.exchange import prefix

SEGMENT = 64
"""Tokens of what runs side by side on accelerators."""


class Tokens(NamedTuple):
    """What a token brings, time first: x and dt [T, B, D], b and c [T, B, N], starts [T, B]."""

    x: Array
    dt: Array
    b: Array
    c: Array
    starts: Array | None = None


class Fixed(NamedTuple):
    """What all tokens have: a [N, D], and what documents begin with, [B, N, D] or None."""

    a: Array
    begin: Array | None


Part = Callable[[Array, Fixed, Tokens], tuple[Array, Array]]
"""(state, fixed, tokens of a chunk) -> the state after them, and what is read."""


def selective_scan(
    x: Float[Array, "B T D"],
    dt: Float[Array, "B T D"],
    a: Float[Array, "N D"],
    b: Float[Array, "B T N"],
    c: Float[Array, "B T N"],
    *,
    state: Float[Array, "B N D"] | None = None,
    method: str = "chunked",
    chunk: int = 8,
    axis: str | None = None,
    starts: Bool[Array, "B T"] | None = None,
    begin: Float[Array, "B N D"] | None = None,
    backend: str | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B N D"]]:
    """h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t, read as y_t = sum_n c_t h_t, for each channel.

    Source: Gu and Dao 2023 (arXiv 2312.00752), eq. 2 and section 3.2, with the simplified step
    of the official code: a is discretised by zero-order hold, b by Euler's rule. The skip D x is
    left to the caller. Float32 inside.

    Every state number has a decay of its own, so there is no product of matrices to be had. The
    chunked method holds the N D numbers of a token's state for one chunk at a time: it keeps the
    state before each chunk, and its backward pass computes the others again. A processor goes
    token by token inside a chunk. On accelerators the tokens of a chunk are written out, and
    segments of `SEGMENT` tokens run side by side, twice: from zeros, then from the states that they
    begin with, so that the steps which must follow one another do not grow with T.

    Args:
      x: inputs.
      dt: step sizes, at least 0; 0 leaves the state as it is.
      a: rates of decay, at most 0.
      b: by what the input is multiplied as it is written to each of a channel's N numbers.
      c: the weights by which a channel's N numbers are read.
      state: what is carried in (before the first shard, where tokens are split); None for zeros.
      method: "chunked"; "associative", `lax.associative_scan` over all tokens; "recurrent", token
        by token. They differ in time and memory alone.
      chunk: tokens in a chunk; on accelerators the program grows with it.
      axis: mesh axis that splits the tokens. Each shard sends a decay and a state. It then runs
        again from the state that it was given.
      starts: true where documents begin: there the state is `begin` before the token decays it
        and is written. None where all tokens belong to one.
      begin: what documents begin with, like `state`; None for zeros.
      backend: where it will run, as "cpu"; None for JAX's default.

    Returns:
      y in the dtype of x, and the float32 state after the last token.

    Raises:
      UserError: an unknown method, a chunk below 1, shapes that do not fit, `starts` that is not
        bool.
    """
    _check(x, dt, a, b, c, state, begin, starts, method, chunk)
    run, dtype = METHODS[method], x.dtype
    if method == "chunked" and (backend or jax.default_backend()) != "cpu":
        run = _segmented
    if state is None:
        state = jnp.zeros((x.shape[0], *a.shape), jnp.float32)
    state, a = state.astype(jnp.float32), a.astype(jnp.float32)
    tokens = Tokens(*(jnp.moveaxis(v, 1, 0).astype(jnp.float32) for v in (x, dt, b, c)))
    fixed = Fixed(a, None)
    if starts is not None:
        tokens = tokens._replace(starts=starts.T)
        fixed = Fixed(a, None if begin is None else begin.astype(jnp.float32))
    if axis is None:
        last, y = run(*_alike(state, fixed, tokens), chunk)
    else:
        unread = tokens._replace(c=jnp.zeros_like(tokens.c))  # so that no gradient of it is summed
        own, _ = run(*_alike(jnp.zeros_like(state), fixed, unread), chunk)
        decay = jnp.exp(jnp.sum(tokens.dt, 0)[:, None] * a)
        if starts is not None:
            decay = jnp.where(jnp.any(starts, axis=1)[:, None, None], 0.0, decay)
        unit = jnp.ones(state.shape, jnp.float32)
        (_, before), (_, last) = prefix((decay, own), _combine, axis, (unit, state))
        _, y = run(*_alike(before, fixed, tokens), chunk)
    return jnp.moveaxis(y, 0, 1).astype(dtype), last


def _check(
    x: Array,
    dt: Array,
    a: Array,
    b: Array,
    c: Array,
    state: Array | None,
    begin: Array | None,
    starts: Array | None,
    method: str,
    chunk: int,
) -> None:
    op = "selective_scan"
    check_choice(op, "method", method, METHODS)
    check_chunk(op, chunk)
    check_tokens(op, "x", x, "[B, T, D]")
    rows, tokens, channels = x.shape
    check_shape(op, "dt", dt, x.shape)
    if a.ndim != 2 or a.shape[1] != channels:
        raise UserError(f"{op}: a {a.shape} is not [N, D] with D = {channels}")
    for name, weights in (("b", b), ("c", c)):
        check_shape(op, name, weights, (rows, tokens, a.shape[0]))
    for name, one in (("state", state), ("begin", begin)):
        check_shape(op, name, one, (rows, *a.shape))
    check_starts(op, starts, (rows, tokens))


def _alike(state: Array, fixed: Fixed, tokens: Tokens) -> tuple[Array, Fixed, Tokens]:
    """Types all arrays as varying over the same mesh axes."""
    arrays, structure = jax.tree.flatten((state, fixed, tokens))
    return structure.unflatten(collectives.vary_alike(*arrays))


def _combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
    return left[0] * right[0], right[0] * left[1] + right[1]


def _recurrent(state: Array, fixed: Fixed, tokens: Tokens, chunk: int) -> tuple[Array, Array]:
    def step(state: Array, token: Tokens) -> tuple[Array, Array]:
        decay, write = _decay_and_write(fixed, token)
        state = decay * state + write
        return state, _read(state, token.c)

    return lax.scan(step, state, tokens)


def _associative(state: Array, fixed: Fixed, tokens: Tokens, chunk: int) -> tuple[Array, Array]:
    decay, write = _decay_and_write(fixed, tokens)
    write = write.at[0].add(decay[0] * state)
    _, states = lax.associative_scan(_combine, (decay, write))
    return states[-1], _read(states, tokens.c)


def _recomputed(state: Array, fixed: Fixed, tokens: Tokens, chunk: int) -> tuple[Array, Array]:
    """Token by token; the backward pass makes the states of a chunk again."""

    def part(state: Array, fixed: Fixed, tokens: Tokens) -> tuple[Array, Array]:
        return _recurrent(state, fixed, tokens, chunk)

    return _by_chunks(jax.checkpoint(part, prevent_cse=False), state, fixed, tokens, chunk)


def _by_chunks(
    part: Part, state: Array, fixed: Fixed, tokens: Tokens, chunk: int
) -> tuple[Array, Array]:
    """Chunk after chunk, each computed by `part`."""
    count = tokens.x.shape[0]
    chunk = min(chunk, count)
    missing = -count % chunk  # steps of size 0 change nothing

    def chunks(x: Array) -> Array:
        padded = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(-1, chunk, *x.shape[1:])

    state, y = lax.scan(
        lambda state, own: part(state, fixed, own), state, jax.tree.map(chunks, tokens)
    )
    return state, y.reshape(-1, *y.shape[2:])[:count]


def _segmented(state: Array, fixed: Fixed, tokens: Tokens, chunk: int) -> tuple[Array, Array]:
    """Chunks written out, with the segments of a sequence as rows beside each other."""
    count, rows, channels = tokens.x.shape
    if count <= SEGMENT:
        return _by_chunks(_chunk, state, fixed, tokens, chunk)
    segments = -(-count // SEGMENT)
    many = None if fixed.begin is None else jnp.tile(fixed.begin, (segments, 1, 1))
    many = Fixed(fixed.a, many)

    def beside(x: Array) -> Array:  # [T, B, ...] as [SEGMENT, segments, B, ...]
        x = jnp.pad(x, [(0, segments * SEGMENT - count)] + [(0, 0)] * (x.ndim - 1))
        return jnp.moveaxis(x.reshape(segments, SEGMENT, *x.shape[1:]), 1, 0)

    def run(states: Array, parts: Tokens) -> tuple[Array, Array]:
        rows = jax.tree.map(lambda x: x.reshape(SEGMENT, -1, *x.shape[3:]), parts)
        last, y = _by_chunks(_chunk, states.reshape(-1, *fixed.a.shape), many, rows, chunk)
        return last.reshape(states.shape), y.reshape(SEGMENT, segments, -1, channels)

    parts = jax.tree.map(beside, tokens)
    zeros = collectives.typed_as(jnp.zeros((segments, *state.shape), state.dtype), state)
    own = jax.checkpoint(lambda parts: run(zeros, parts)[0])(parts)  # no states of two runs at once
    decay = jnp.exp(jnp.sum(parts.dt, 0)[..., None, :] * fixed.a)
    if parts.starts is not None:
        decay = jnp.where(jnp.any(parts.starts, axis=0)[..., None, None], 0.0, decay)
    own = own.at[0].add(decay[0] * state)
    _, after = lax.associative_scan(_combine, (decay, own))
    last, y = run(jnp.concatenate([state[None], after[:-1]]), parts)
    return last[-1], jnp.moveaxis(y, 1, 0).reshape(-1, rows, channels)[:count]


METHODS: dict[str, Callable[[Array, Fixed, Tokens, int], tuple[Array, Array]]] = {
    "chunked": _recomputed,
    "associative": _associative,
    "recurrent": _recurrent,
}


def _decay_and_write(fixed: Fixed, tokens: Tokens) -> tuple[Array, Array]:
    """exp(dt a), 0 where a document begins, and dt x b, each [..., B, N, D].

    What is left of a document's start after its first token is written with it. Outer products,
    so that gradients are products too: XLA on CPU takes many times as long for sums.
    """
    ones = jnp.ones(fixed.a.shape[0], jnp.float32)
    decay = jnp.exp(_outer(ones, tokens.dt) * fixed.a)
    write = _outer(tokens.b, tokens.dt * tokens.x)
    if tokens.starts is not None:
        there = tokens.starts[..., None, None]
        if fixed.begin is not None:
            write = write + decay * there * fixed.begin
        decay = decay * ~there  # a select costs more
    return decay, write


def _outer(x: Array, y: Array) -> Array:
    """[..., N] and [..., D] as [..., N, D]; x may be [N], for all."""
    return jnp.einsum("...n,...d->...nd", x, y, precision=lax.Precision.HIGHEST)


def _read(states: Array, c: Array) -> Array:
    # A product: XLA on CPU merges a sum into the product after it, which then takes four times as
    # long. Float32 on accelerators too.
    return jnp.einsum("...nd,...n->...d", states, c, precision=lax.Precision.HIGHEST)


def _states(state: Array, fixed: Fixed, tokens: Tokens) -> tuple[Array, Array]:
    """All decays and all states [T, B, N, D] of a few tokens."""
    decay, write = _decay_and_write(fixed, tokens)
    return decay, _in_turn(decay, write, state)


def _in_turn(decay: Array, write: Array, begin: Array, reverse: bool = False) -> Array:
    """h_t = decay_t h_{t-1} + write_t without a loop in the program, whose turns cost more."""

    def step(h: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        h = now[0] * h + now[1]
        return h, h

    return lax.scan(step, begin, (decay, write), reverse=reverse, unroll=True)[1]


@jax.custom_vjp
def _chunk(state: Array, fixed: Fixed, tokens: Tokens) -> tuple[Array, Array]:
    """The state after a chunk, and what is read in it; stores its arguments alone."""
    _, states = _states(state, fixed, tokens)
    return states[-1], _read(states, tokens.c)


def _chunk_backward(
    saved: tuple[Array, Fixed, Tokens], gradients: tuple[Array, Array]
) -> tuple[Array, Fixed, Tokens]:
    """The recurrence of the gradients by the states runs from right to left."""
    state, fixed, tokens = saved
    by_last, by_y = gradients
    decay, states = _states(state, fixed, tokens)
    by_read = by_y[:, :, None] * tokens.c[..., None]
    following = jnp.concatenate([decay[1:], jnp.ones_like(decay[:1])])
    by_state = _in_turn(following, by_read, by_last, reverse=True)
    before = jnp.concatenate([state[None], states[:-1]])
    by_exponent = by_state * decay * before
    by_begin = None
    if fixed.begin is not None and tokens.starts is not None:
        left = jnp.exp(tokens.dt[:, :, None] * fixed.a) * tokens.starts[..., None, None]
        by_exponent = by_exponent + by_state * left * fixed.begin
        by_begin = jnp.sum(by_state * left, axis=0)
    by_write = jnp.sum(by_state * tokens.b[..., None], axis=-2)  # by dt x
    by_tokens = Tokens(
        x=by_write * tokens.dt,
        dt=by_write * tokens.x + jnp.sum(by_exponent * fixed.a, axis=-2),
        b=jnp.sum(by_state * (tokens.dt * tokens.x)[:, :, None], axis=-1),
        c=jnp.sum(states * by_y[:, :, None], axis=-1),
    )
    by_a = jnp.sum(by_exponent * tokens.dt[:, :, None], axis=(0, 1))
    return decay[0] * by_state[0], Fixed(by_a, by_begin), by_tokens


_chunk.defvjp(lambda *args: (_chunk(*args), args), _chunk_backward)
