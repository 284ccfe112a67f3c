"""The memory scan chunk by chunk, in matrix products: the fast form.

Inside a chunk, what every token owes to the tokens before it is a product of masked [C, C]
matrices; from chunk to chunk only the state is handed on. Sources: Mamba-2's state-space duality
(arXiv 2405.21060, section 6), GLA (2312.06635, section 4), DeltaNet (2406.06484, section 3) and
Gated DeltaNet (2412.06464, section 3.3) for the delta rule as a system of I + L.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gam_jax.ops.scan.decays import Decays, running, together
from gam_jax.ops.scan.layout import Inputs
from gam_jax.ops.scan.triangle import BASE, grow, unit_lower_solve

AT_ONCE = {"cpu": 16}
"""Rows x heads x chunks that are worked on at once: enough for batched products, and in cache."""
MOST_AT_ONCE = 2**24
"""Numbers of the largest array of all of these on accelerators, whose limit it is: 64 MiB."""


def run(
    inputs: Inputs,
    state: Float[Array, "P R K N"],
    rule: str,
    chunk: int,
    backend: str | None = None,
) -> tuple[Float[Array, "P R T N"], Float[Array, "P R K N"]]:
    """Runs the memory scan chunk by chunk, several chunks in one turn of a loop.

    For the backward pass the inputs and one state a turn are stored; all else is computed again.
    On accelerators one turn has all chunks, unless they are very many, see `_side_by_side`.
    See `memory_scan` for the arguments, in the layout of `Inputs`.
    """
    rows, heads, tokens, _ = inputs.v.shape
    backend = backend or jax.default_backend()
    size = 1 << (min(chunk, tokens) - 1).bit_length()
    count = -(-tokens // size)
    turns = -(-count // max(1, _most(inputs, size, backend) // (rows * heads)))
    at_once = -(-count // turns)
    padded = inputs.padded(turns * at_once * size).map(
        lambda x: jnp.moveaxis(x.reshape(*x.shape[:2], turns, at_once, size, x.shape[-1]), 2, 0)
    )

    def turn(state: Array, part: Inputs) -> tuple[Array, Array]:
        if backend in AT_ONCE:
            return _chunks(part, state, rule)
        return _side_by_side(part, state, rule, again=turns == 1)

    if turns > 1:
        turn = jax.checkpoint(turn, prevent_cse=False)
    state, y = lax.scan(turn, state, padded)
    y = jnp.moveaxis(y, 0, 2).reshape(rows, heads, -1, y.shape[-1])
    return y[:, :, :tokens], state


def _most(inputs: Inputs, size: int, backend: str) -> int:
    """How many chunks of that size are worked on at once."""
    keys, width = inputs.k.shape[-1], inputs.v.shape[-1]
    largest = max(size, keys) * max(size, keys, width)  # of scores, of tokens, of the state
    return AT_ONCE.get(backend, MOST_AT_ONCE // largest)


def _side_by_side(part: Inputs, state: Array, rule: str, again: bool) -> tuple[Array, Array]:
    """Chunks [P, R, chunks, C, ...], whose products are not in the loop over states.

    What chunks do to a state is found for all of them, then the states one after another, then
    what is read. Only the second step waits for the chunk before: its turn is a sum of what is kept
    and what is written, and for the delta rule two products with the state.

    Args:
      part: the chunks.
      state: before the first.
      rule: see `memory_scan`.
      again: store inputs and states for the backward pass, and for the delta rule what is written;
        and make the products of the first and third step again.
    """
    stage: Callable[..., Any] = jax.checkpoint if again else lambda function: function
    effects = stage(lambda part: _effects(part, rule))(part)
    effects = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), effects)
    last, held = lax.scan(_after, state, effects)
    return last, stage(_read)(part, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), held))


class _Write(NamedTuple):
    """What a chunk does to the state S: whole^T S + stored.

    Attributes:
      whole: decay of the chunk, [..., 1, 1 or K]; None for none.
      stored: what it leaves of what it writes.
    """

    whole: Array | None
    stored: Array


class _Overwrite(NamedTuple):
    """Likewise for the delta rule: whole^T S, and write - decayed S stored under the keys.

    Attributes:
      whole: as of `_Write`.
      write, decayed: see `_overwritten`.
      keys, to_end: of the chunk, see `_stored`.
    """

    whole: Array | None
    write: Array
    decayed: Array
    keys: Array
    to_end: Array | None


def _effects(part: Inputs, rule: str) -> _Write | _Overwrite:
    inside = _Chunk(part.k, part.log_decay, part.starts)
    write = _written(part)
    if rule == "hebb":
        return _Write(inside.whole, _stored(part.k, inside.to_end, write))
    write, decayed = _overwritten(inside, write, part.beta)
    return _Overwrite(inside.whole, write, decayed, part.k, inside.to_end)


def _written(part: Inputs) -> Array:
    return part.v if part.beta is None else part.beta * part.v


def _after(state: Array, chunk: _Write | _Overwrite) -> tuple[Array, tuple[Array, Array | None]]:
    """The state after a chunk; that before it, and what the delta rule writes there."""
    kept = state if chunk.whole is None else jnp.swapaxes(chunk.whole, -1, -2) * state
    if isinstance(chunk, _Write):
        return kept + chunk.stored, (state, None)
    write = chunk.write - chunk.decayed @ state
    return kept + _stored(chunk.keys, chunk.to_end, write), (state, write)


def _read(part: Inputs, held: tuple[Array, Array | None]) -> Array:
    """What queries find in the state that entered their chunk, and in what it has written."""
    states, writes = held
    inside = _Chunk(part.k, part.log_decay, part.starts)
    writes = _written(part) if writes is None else writes
    return inside.products(part.q) @ writes + inside.read(part.q, states)


def _chunks(part: Inputs, state: Array, rule: str) -> tuple[Array, Array]:
    """Chunks [P, R, chunks, C, ...], all at once but for the state: (last state, y)."""
    q, k, v, log_decay, beta, starts = part
    inside = _Chunk(k, log_decay, starts)
    write = v if beta is None else beta * v
    scores = inside.products(q)
    decayed = None
    if rule == "delta":
        write, decayed = _overwritten(inside, write, beta)

    def hand_on(state: Array, chunk: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        k, to_end, whole, write, *decayed = chunk
        if decayed:  # what the chunk writes beside what the state holds under its keys
            write = write - decayed[0] @ state
        kept = state if whole is None else jnp.swapaxes(whole, -1, -2) * state
        return kept + _stored(k, to_end, write), (state, write)

    chunks = (k, inside.to_end, inside.whole, write, *(() if decayed is None else (decayed,)))
    chunks = jax.tree.map(lambda x: jnp.moveaxis(x, 2, 0), chunks)
    last, (states, writes) = lax.scan(hand_on, state, chunks)
    states, writes = jnp.moveaxis(states, 0, 2), jnp.moveaxis(writes, 0, 2)
    return last, scores @ writes + inside.read(q, states)


def _overwritten(inside: _Chunk, write: Array, beta: Array | None) -> tuple[Array, Array]:
    """W and U of the delta rule: where S enters the chunk, its tokens write W - U S.

    (I + L) [W, U] = [write, beta k decayed since the start], L being beta k_i . k_j below the
    diagonal. The two are solved for together.
    """
    k = inside.k if beta is None else beta * inside.k
    overlap = jnp.tril(inside.products(inside.k), -1)
    lower = overlap if beta is None else beta * overlap
    lead = write.shape[:-2]
    lower, start = (
        jnp.broadcast_to(x, (*lead, *x.shape[-2:])) for x in (lower, inside.since_start(k))
    )
    found = unit_lower_solve(lower, jnp.concatenate([write, start], axis=-1))
    width = write.shape[-1]
    return found[..., :width], found[..., width:]


def _stored(k: Array, to_end: Array | None, write: Array) -> Array:
    """What tokens leave in the state at the end of their chunk."""
    if to_end is not None and to_end.shape[-1] == 1:
        write = to_end * write
    elif to_end is not None:
        k = to_end * k
    return jnp.swapaxes(k, -1, -2) @ write


class _Chunk:
    """The decays inside chunks: none, one a head [..., C, 1] or one a key channel [..., C, K]."""

    def __init__(self, k: Array, log_decay: Array | None, starts: Array | None) -> None:
        self.k = k
        self.past = jnp.tri(k.shape[-2], dtype=bool)
        self.decays, self.to_end, self.whole, self.start = None, None, None, None
        if log_decay is not None:
            self.decays = running(log_decay, -2, None if starts is None else together(starts))
            last = self.decays.at(slice(-1, None), -2)
            self.start = self.decays.from_start()
            self.to_end = last.since(self.decays)
            self.whole = last.from_start()

    def products(self, x: Array) -> Array:
        """[..., C, C]: x_i . k_j times the decay from j to i; 0 for j after i."""
        if self.decays is None:
            return jnp.where(self.past, x @ jnp.swapaxes(self.k, -1, -2), 0.0)
        if self.decays.fine.shape[-1] > 1:
            return _by_channel(x, self.k, self.decays)
        earlier = Decays(*(jnp.swapaxes(part, -1, -2) for part in self.decays))
        return self.decays.since(earlier, self.past) * (x @ jnp.swapaxes(self.k, -1, -2))

    def since_start(self, x: Array) -> Array:
        """x with the decay from the chunk's start."""
        return x if self.start is None else self.start * x

    def read(self, q: Array, states: Array) -> Array:
        """What queries find in the state that entered their chunk."""
        if self.start is not None and self.start.shape[-1] == 1:
            return self.start * (q @ states)
        return self.since_start(q) @ states


def _by_channel(x: Array, k: Array, decays: Decays) -> Array:
    """`products` where every key channel has a decay of its own.

    exp(c_i - c_j) does not split into factors of i and j that stay in range, unless both look at
    a place between them. So the chunk is halved: what the later half owes to the earlier is a
    product of factors at most 1 that meet at the middle; small blocks are summed pair by pair.
    """
    lead, (size, width) = decays.fine.shape[:-2], x.shape[-2:]

    def flat(x: Array) -> Array:  # XLA's products on CPU (jax 0.10.2) crash on seven axes
        return jnp.broadcast_to(x, (*lead, size, width)).reshape(-1, size, width)

    x, k, decays = flat(x), flat(k), Decays(*map(flat, decays))
    small = min(BASE, size)
    rows, keys = _blocks(x, small), _blocks(k, small)
    sums = Decays(*(_blocks(part, small) for part in decays))
    pairs = sums.expand(-2).since(sums.expand(-3), jnp.tri(small, dtype=bool)[..., None])
    found = jnp.sum(rows[..., :, None, :] * keys[..., None, :, :] * pairs, axis=-1)
    while small < size:
        halves = Decays(*(_blocks(part, 2 * small) for part in decays))
        early, late = halves.at(slice(small), -2), halves.at(slice(small, None), -2)
        middle = early.at(slice(-1, None), -2)
        left = _blocks(x, 2 * small)[..., small:, :] * late.since(middle)
        right = _blocks(k, 2 * small)[..., :small, :] * middle.since(early)
        found = grow(found, left @ jnp.swapaxes(right, -1, -2))
        small *= 2
    return found.reshape(*lead, size, size)


def _blocks(x: Array, size: int) -> Array:
    """[..., C, K] as [..., C / size, size, K]."""
    return x.reshape(*x.shape[:-2], -1, size, x.shape[-1])
