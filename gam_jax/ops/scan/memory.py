"""An associative memory that is written as the sequence is read: its signature and its shards."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from gam_jax.ops.checks import (
    check_choice,
    check_chunk,
    check_shape,
    check_starts,
    check_tokens,
)
from gam_jax.ops.scan import chunks, kernel, steps, tree
from gam_jax.ops.scan.decays import begun, running
from gam_jax.ops.scan.diagonal import diagonal_scan
from gam_jax.ops.scan.layout import Inputs
from sharding import collectives
from sharding.errors import UserError
from sharding.exchange import prefix

Run = Callable[..., tuple[Array, Array]]
"""(inputs, state, rule=, chunk=, backend=) -> y and the last state."""
METHODS: dict[str, Run] = {
    "chunked": chunks.run,
    "pallas": kernel.run,
    "associative": tree.run,
    "recurrent": steps.run,
}
RULES = ("hebb", "delta")


class Begin(NamedTuple):
    """What documents begin with, in the layout of `Inputs`.

    Attributes:
      state: S_0 [P, R, K, N].
      decay: [P, R, T, 1 or K], what is left of it at each token if it decays and nothing else
        happens, c_t; 0 where the document began before this shard or this call.
    """

    state: Array
    decay: Array


def memory_scan(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H N"],
    *,
    log_decay: Float[Array, "B T H"] | Float[Array, "B T H K"] | None = None,
    beta: Float[Array, "B T H"] | None = None,
    rule: str = "hebb",
    state: Float[Array, "B H K N"] | None = None,
    method: str = "chunked",
    chunk: int = 64,
    axis: str | None = None,
    starts: Bool[Array, "B T"] | None = None,
    begin: Float[Array, "B H K N"] | None = None,
    backend: str | None = None,
) -> tuple[Float[Array, "B T H N"], Float[Array, "B H K N"]]:
    """S_t = transition_t S_{t-1} + beta_t k_t v_t^T, read as y_t = S_t^T q_t.

    The transition is diag(decay_t) for the rule "hebb" (linear attention, RetNet, GLA, Mamba-2)
    and (I - beta_t k_t k_t^T) diag(decay_t) for "delta" (DeltaNet; with a decay a head Gated
    DeltaNet, with one a key channel Kimi delta attention). The delta rule wants keys of norm 1
    (or beta |k|^2 below 2); nothing is normalised or scaled here. Near 2, where keys repeat,
    rounding adds up: docs/scan.md has the bounds that the chunked method is held to.

    States and arithmetic are float32. What is stored for the backward pass is linear in T for
    every method: K N numbers a chunk for all but "associative", which stores inputs alone, but
    works on T K N numbers (T K (K + N) for the delta rule).

    Args:
      q: queries of G groups, each shared by H / G heads in a row.
      k: keys, in the same groups.
      v: values.
      log_decay: logarithm of the decay of a head, or of each of its key channels; at most 0,
        -inf for a decay of 0; None for no decay. Below -87 counts as a decay of 0.
      beta: strength of the write; None for 1.
      rule: one of RULES.
      state: what is carried in (before the first shard, where tokens are split); None for zeros.
      method: one of METHODS: in matrix products chunk by chunk, the same in a Pallas kernel for
        TPUs, `lax.associative_scan`, or token by token. They differ in time and memory alone.
      chunk: tokens in a chunk; rounded up to a power of two by "chunked" and "pallas".
      axis: mesh axis that splits the tokens. Each shard sends its state and what became of the
        state it was given: nothing, the decay (1 or K numbers a head) or a K x K matrix (delta).
      starts: true where documents begin: there the memory is empty, or `begin`, before the token
        decays it and is written. None where all tokens belong to one. It makes a memory without
        decay one with a decay.
      begin: what documents begin with, like `state`; None for zeros.
      backend: where it will run, as "cpu"; None for JAX's default. On accelerators the products of
        all chunks are made at once, and only states wait for each other.

    Returns:
      y in the dtype of v, and the float32 state after the last token.

    Raises:
      UserError: an unknown rule or method, shapes that do not fit, `starts` that is not bool,
        "pallas" on a GPU.
    """
    _check(q, k, v, log_decay, beta, state, begin, starts, rule, method, chunk)
    batch, tokens, heads, width = v.shape
    groups, keys = k.shape[2:]
    if state is None:
        state = jnp.zeros((batch, heads, keys, width), jnp.float32)
    state = state.astype(jnp.float32).reshape(batch * groups, -1, keys, width)
    anew = None
    if log_decay is not None and log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    if starts is not None:
        kept = jnp.zeros((batch, tokens, groups, 1)) if log_decay is None else log_decay
        log_decay = begun(kept, starts)
        if begin is not None:
            ones = jnp.ones(kept[:, 0].shape, jnp.float32)
            given = {"starts": starts, "begin": ones, "backend": backend}
            left, _ = diagonal_scan(kept, jnp.zeros(kept.shape), **given)
            begin = begin.astype(jnp.float32).reshape(state.shape)
            anew = Begin(begin, _by_group(left, groups))
        starts = jnp.broadcast_to(starts[..., None, None], (batch, tokens, groups, 1))
    beta = None if beta is None else beta[..., None]
    inputs = Inputs(q, k, v, log_decay, beta, starts).map(lambda x: _by_group(x, groups))
    method = "recurrent" if tokens == 1 and axis is None else method
    run = functools.partial(METHODS[method], rule=rule, chunk=chunk, backend=backend)
    if axis is None:
        y, state = _run_alike(inputs, state, anew, rule, run)
    else:
        over = _delta_over_shards if rule == "delta" else _hebb_over_shards
        y, state = over(inputs, state, anew, run, axis)
    y = jnp.moveaxis(y.reshape(batch, heads, tokens, width), 1, 2).astype(v.dtype)
    return y, state.reshape(batch, heads, keys, width)


def _by_group(x: Array, groups: int) -> Array:
    """[B, T, H, ...] as [B G, H / G, T, ...], float32."""
    x = jnp.moveaxis(x.astype(jnp.float32), 2, 1)
    return x.reshape(x.shape[0] * groups, -1, *x.shape[2:])


def _run_alike(
    inputs: Inputs, state: Array, anew: Begin | None, rule: str, run: Run
) -> tuple[Array, Array]:
    """Runs a method with all arrays typed as varying over the same mesh axes.

    Where documents begin with a state S_0, what they make of it is S = S' + c S_0, and S' begins
    with zeros. For "hebb" that is linear; for "delta" put S into its recurrence: c S_0 decays as S
    does, so S' obeys the same recurrence with v - (c S_0)^T k in the place of v.
    """
    *_, state = collectives.vary_alike(*jax.tree.leaves((inputs, anew, state)))
    inputs, anew = jax.tree.map(lambda x: collectives.vary_alike(x, state)[0], (inputs, anew))
    if anew is None:
        return run(inputs, state)
    if rule == "delta":
        inputs = inputs._replace(v=inputs.v - _read(inputs.k, anew.decay, anew.state))
    y, last = run(inputs, state)
    left = jnp.swapaxes(anew.decay[..., -1:, :], -1, -2)
    return y + _read(inputs.q, anew.decay, anew.state), last + left * anew.state


def _read(q: Array, decay: Array, state: Array) -> Array:
    """What queries [P, 1, T, K] find in a state [P, R, K, N] that has decayed since."""
    if decay.shape[-1] == 1:
        return decay * (q @ state)
    return (decay * q) @ state


def _hebb_over_shards(
    inputs: Inputs, state: Array, anew: Begin | None, run: Run, axis: str
) -> tuple[Array, Array]:
    """The shard from zeros, then what the state before it adds: q_t . decay since the start."""
    y, own = _run_alike(inputs, jnp.zeros_like(state), anew, "hebb", run)
    if inputs.log_decay is None:
        before, total = prefix(own, jnp.add, axis, state)
        return y + inputs.q @ before, total
    start = running(inputs.log_decay, -2).from_start()
    whole = jnp.swapaxes(start[..., -1:, :], -1, -2)

    def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    unit = jnp.ones(whole.shape, jnp.float32)
    (_, before), (_, total) = prefix((whole, own), combine, axis, (unit, state))
    return y + _read(inputs.q, start, before), total


def _delta_over_shards(
    inputs: Inputs, state: Array, anew: Begin | None, run: Run, axis: str
) -> tuple[Array, Array]:
    """The shard from zeros and, as further columns of the values, from the identity.

    Those columns write nothing, so at the end they are the shard's K x K transition, and what
    is read from them is the query as the state before the shard sees it.
    """
    keys, width = state.shape[-2:]
    eye = jnp.broadcast_to(jnp.eye(keys, dtype=jnp.float32), (*state.shape[:-1], keys))
    nothing = jnp.zeros((*inputs.v.shape[:-1], keys), jnp.float32)
    wide = inputs._replace(v=jnp.concatenate([inputs.v, nothing], axis=-1))
    begin = jnp.concatenate([jnp.zeros_like(state), eye], axis=-1)
    if anew is not None:  # of which nothing is a matter of what came before
        anew = anew._replace(state=jnp.concatenate([anew.state, jnp.zeros_like(eye)], axis=-1))
    y, own = _run_alike(wide, begin, anew, "delta", run)

    def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return right[0] @ left[0], right[0] @ left[1] + right[1]

    element = own[..., width:], own[..., :width]
    (_, before), (_, total) = prefix(element, combine, axis, (eye, state))
    return y[..., :width] + y[..., width:] @ before, total


def _check(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | None,
    beta: Array | None,
    state: Array | None,
    begin: Array | None,
    starts: Array | None,
    rule: str,
    method: str,
    chunk: int,
) -> None:
    op = "memory_scan"
    check_choice(op, "rule", rule, RULES)
    check_choice(op, "method", method, METHODS)
    check_chunk(op, chunk)
    for name, x, axes in (("q", q, "G, K"), ("k", k, "G, K"), ("v", v, "H, N")):
        check_tokens(op, name, x, f"[B, T, {axes}]")
    heads, keys = v.shape[:3], k.shape[3]
    if q.shape != k.shape or k.shape[:2] != v.shape[:2] or v.shape[2] % k.shape[2]:
        raise UserError(
            f"{op}: q {q.shape}, k {k.shape} and v {v.shape} must be [B, T, G, K], the "
            f"same, and [B, T, H, N] with H a multiple of G"
        )
    if log_decay is not None and log_decay.shape not in (heads, (*heads, keys)):
        raise UserError(
            f"{op}: log_decay {log_decay.shape} is not [B, T, H] or [B, T, H, K] = {(*heads, keys)}"
        )
    check_shape(op, "beta", beta, heads)
    for name, x in (("state", state), ("begin", begin)):
        check_shape(op, name, x, (heads[0], heads[2], keys, v.shape[3]))
    check_starts(op, starts, heads[:2])
