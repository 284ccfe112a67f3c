"""How tokens and the experts of other devices meet, along a mesh axis that splits the experts.

Each way takes `run(x, owner, weights, most)`, which gives sum_k weights[n, k] FFN_owner[n, k](x[n])
over the experts of this device alone: `owner` counts from its first one, and is their number
for a choice that is not its to compute; at most `most` choices are. Along the axis devices hold
other tokens, or the same ones. Sources: GShard (arXiv 2006.16668), Tutel (2206.03382).
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from gam_jax.ops.grouped import collect, ranks, spread
from sharding import collectives, cost

STRATEGIES = ("auto", "exchange", "gather")

Run = Callable[[Array, Array, Array, int], Array]


def cheapest(strategy: str, tokens: int, experts: int, room: int, devices: int) -> str:
    """The strategy; of "auto", the one that sends less.

    Args:
      strategy: one of STRATEGIES.
      tokens: on a device.
      experts: E, on all devices.
      room: of an expert for the tokens of one device.
      devices: along the axis.
    """
    if strategy != "auto":
        return strategy
    exchanged = cost.expert_exchange(experts * room, 1, devices)
    return "exchange" if exchanged < cost.expert_gather(tokens, 1, devices) else "gather"


def on_alike(
    run: Run,
    x: Float[Array, "N D"],
    experts: Int[Array, "N K"],
    weights: Float[Array, "N K"],
    total: int,
    axis: str | None,
) -> Float[Array, "N D"]:
    """Where all devices hold the same tokens: each computes its experts' part, and they add up."""
    return collectives.psum(_own(run, x, experts, weights, total, axis), axis)


def by_gathering(
    run: Run,
    x: Float[Array, "N D"],
    experts: Int[Array, "N K"],
    weights: Float[Array, "N K"],
    total: int,
    axis: str,
) -> Float[Array, "N D"]:
    """All tokens are gathered, each device computes its experts' part, parts are reduce-scattered.

    Nothing is dropped and all sizes are known, for (G - 1) N D numbers each way.
    """

    def gathered(a: Array) -> Array:
        return lax.all_gather(collectives.as_varying(a, axis), axis, axis=0, tiled=True)

    part = _own(run, gathered(x), gathered(experts), gathered(weights), total, axis)
    return collectives.reduce_scatter(part, axis, dim=0)


def by_exchange(
    run: Run,
    x: Float[Array, "N D"],
    experts: Int[Array, "N K"],
    weights: Float[Array, "N K"],
    total: int,
    axis: str,
    room: int,
) -> Float[Array, "N D"]:
    """Each token is sent to its experts and back, in `room` places for each expert.

    What is sent is (G - 1) / G E room D numbers each way, however tokens are routed. With a
    capacity, `room` is a bound on what an expert takes from one device; room = N is always enough,
    as a token chooses an expert once.
    """
    parts = lax.axis_size(axis)
    own, (count, chosen) = total // parts, experts.shape
    owner = experts.reshape(-1)
    sizes, rank = ranks(owner, total)
    slots = total * room
    place = jnp.where(owner < total, owner * room + rank, slots).astype(jnp.int32)
    entries = jnp.arange(count * chosen, dtype=jnp.int32)
    source = jnp.full(slots, count * chosen, jnp.int32)
    source = source.at[place].set(entries, mode="drop", unique_indices=True)
    place = place.reshape(experts.shape)

    def swapped(a: Array) -> Array:
        return lax.all_to_all(collectives.as_varying(a, axis), axis, 0, 0, tiled=True)

    received = swapped(spread(x, source, place))  # from each device, for each own expert, its room
    there = jnp.arange(room) < swapped(sizes)[:, None]
    owned = jnp.where(there.reshape(parts, own, room), jnp.arange(own)[:, None], own)
    most = parts * count * min(own, chosen)
    found = run(received, owned.reshape(-1, 1), jnp.ones((parts * own * room, 1)), most)
    return collect(swapped(found), weights, source, place)


def _own(run: Run, x: Array, experts: Array, weights: Array, total: int, axis: str | None) -> Array:
    """This device's experts' part."""
    own = total // collectives.axis_size(axis)
    owner = experts - collectives.axis_index(axis) * own
    owner = jnp.where((owner >= 0) & (owner < own), owner, own)
    return run(x, owner, weights, experts.shape[0] * min(own, experts.shape[1]))
