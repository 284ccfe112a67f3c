"""How tokens reach experts that lie on other devices, along the mesh axis that splits the experts.

Three ways: `on_alike` where all devices along the axis hold the same tokens, `by_gathering` and
`by_exchange` where each holds its own. Each takes a function `run(x, owner, weights, most)` that
computes this device's share of the mixture of N tokens with K choices each:

- `x` [N, D] are tokens, and `weights` [N, K] the weights of their choices.
- `owner` [N, K] is the expert of each choice, numbered among this device's E' experts from 0. A
  choice of an expert on another device has the number E', and `run` leaves it out.
- `most` bounds how many choices are of this device's experts.

Token n's share is the sum, over its choices of experts that this device has, of the choice's
weight times that expert's feed-forward layer applied to the token. Sources: GShard
(arXiv 2006.16668), Tutel (2206.03382).
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
    """The strategy by name; for "auto", the one that sends fewer bytes.

    Args:
      strategy: one of STRATEGIES.
      tokens: tokens that a device holds.
      experts: E, the experts of all devices together.
      room: places that an expert keeps for the tokens of one device.
      devices: devices along the axis.
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
    """For devices that hold the same tokens: each runs its own experts, and the shares are summed.

    The sum is one all-reduce over the mesh axis `axis`; None for no mesh. `total` is the number
    of experts on all devices.
    """
    return collectives.psum(_own(run, x, experts, weights, total, axis), axis)


def by_gathering(
    run: Run,
    x: Float[Array, "N D"],
    experts: Int[Array, "N K"],
    weights: Float[Array, "N K"],
    total: int,
    axis: str,
) -> Float[Array, "N D"]:
    """All tokens are gathered on each device, which runs its own experts on them.

    The shares are then reduce-scattered, so that each token's sum ends where the token came from.
    No token is dropped. Each of the G devices sends (G - 1) N D numbers each way. `total` is the
    number of experts on all devices.
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
    """Each token is sent to the devices of its experts, and what they make of it is sent back.

    A device sends each of the `total` = E experts a buffer of `room` tokens, whether it is full or
    not. So each of the G devices sends (G - 1) / G E room D numbers each way, however tokens are
    routed. `room` must be at least the number of this device's tokens that any one expert takes:
    a layer with a capacity has such a bound, and N is always enough, as a token chooses an expert
    at most once.
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
    """The share of the sum that this device's own experts contribute."""
    own = total // collectives.axis_size(axis)
    owner = experts - collectives.axis_index(axis) * own
    owner = jnp.where((owner >= 0) & (owner < own), owner, own)
    return run(x, owner, weights, experts.shape[0] * min(own, experts.shape[1]))
