"""Steps of recurrent networks, and their scan over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from sharding import collectives, exchange

State = TypeVar("State")

Product = Callable[[Float[Array, "B U"]], Float[Array, "B G U"]]
"""What the units' own values, of one step before, add to the gates."""


def elman_step(
    h: Float[Array, "B U"], given: Float[Array, "B 1 U"], product: Product
) -> Float[Array, "B U"]:
    """h = tanh(W x + U h + b), W x + b being `given`.

    Source: Elman 1990; Lipton et al. 2015 (arXiv 1506.00019), section 2.3.
    """
    return jnp.tanh(given + product(h))[:, 0]


def lstm_step(
    state: tuple[Float[Array, "B U"], Float[Array, "B U"]],
    given: Float[Array, "B 4 U"],
    product: Product,
) -> tuple[Float[Array, "B U"], Float[Array, "B U"]]:
    """s = f s + i g, h = o tanh(s); i, f, o are sigmoids, g a tanh, of W x + U h + b.

    The gates come in the order i, f, g, o. Source: Hochreiter and Schmidhuber 1997 with forget
    gates (Gers et al. 2000), as in Lipton et al. 2015 (arXiv 1506.00019), section 4.1.
    """
    h, s = state
    i, f, g, o = jnp.moveaxis(given + product(h), 1, 0)
    s = jax.nn.sigmoid(f) * s + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(s), s


def gru_step(
    h: Float[Array, "B U"],
    given: Float[Array, "B 3 U"],
    gates: Product,
    candidate: Product,
    reset_first: bool,
) -> Float[Array, "B U"]:
    """h = z h + (1 - z) n; r, z are sigmoids of W x + U h + b.

    n = tanh(W x + b + U (r h)) with `reset_first` (Cho et al. 2014, arXiv 1406.1078, eq. 5-8),
    else n = tanh(W x + b + r (U h + c)), as cuDNN and PyTorch have it: `candidate` then adds c.
    The gates come in the order r, z, n.
    """
    r, z = jnp.moveaxis(jax.nn.sigmoid(given[:, :2] + gates(h)), 1, 0)
    change = candidate(r * h)[:, 0] if reset_first else r * candidate(h)[:, 0]
    return z * h + (1 - z) * jnp.tanh(given[:, 2] + change)


def recurrent_scan(
    step: Callable[[State, Float[Array, "B G U"]], State],
    state: State,
    given: Float[Array, "B T G U"],
    axis: str | None = None,
    unroll: int = 1,
    starts: Bool[Array, "B T"] | None = None,
    begin: State | None = None,
) -> tuple[State, State]:
    """Runs `step` token after token: the states after each, [B, T, ...], and the last.

    Args:
      step: pure. Arrays that it closes over must vary where `given` does.
      state: before the first token, on all shards the same; float32.
      given: what the inputs give to the gates of this device's units.
      axis: mesh axis that splits the tokens. A shard then waits for those to its left: see
        `exchange.relay`.
      unroll: steps in one turn of the loop.
      starts: true at the first token of each document, where the state begins anew.
      begin: what it then begins with, like `state`; None for zeros.
    """
    by_time = jnp.moveaxis(given, 1, 0)
    begins = None if starts is None else jnp.moveaxis(starts, 1, 0)
    after = jax.eval_shape(step, state, by_time[0])
    state = collectives.typed_as(state, after)
    anew = None if begin is None else collectives.typed_as(begin, after)

    def run(state: State) -> tuple[State, State]:
        def once(state: State, now: tuple[Array, Array | None]) -> tuple[State, State]:
            given, there = now
            if there is not None:
                first = jax.tree.map(jnp.zeros_like, state) if anew is None else anew
                state = jax.tree.map(lambda x, y: jnp.where(there[:, None], y, x), state, first)
            after = step(state, given)
            return after, after

        return lax.scan(once, state, (by_time, begins), unroll=unroll)

    entered = exchange.relay(lambda state: run(state)[0], state, axis)
    last, states = run(entered)
    states = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), states)
    return states, jax.tree.map(lambda x: collectives.from_last(x, axis), last)
