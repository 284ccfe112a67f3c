"""Experts of a mixture: by groups in blocks, by `ragged_dot`, and all of them for every token."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments.benchmark.timing import Quantity, Rows, medians, ratio
from gam_jax.ops import grouped

TOKENS, CHOSEN, WIDTH, HIDDEN = 2048, 2, 256, 512
EXPERTS = (8, 32)


def run(repeats: int, short: bool = False) -> Rows:
    """Forward and backward of two products for each of two experts of 2,048 tokens, in float32.

    Returns:
      A row a way and number of experts: time; and how many times the arithmetic of the chosen
      experts alone would take in one product of equal rows for each expert.
    """
    rows: Rows = {}
    for experts in EXPERTS[:1] if short else EXPERTS:
        rows |= _rows(experts, repeats)
    return rows


def _rows(experts: int, repeats: int) -> Rows:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (TOKENS, WIDTH))
    weight = jax.random.normal(keys[1], (experts, WIDTH, HIDDEN)) / 16
    scores = jax.random.normal(keys[2], (TOKENS, experts))
    _, owner = jax.lax.top_k(scores, CHOSEN)
    ways: dict[str, Any] = {
        "blocks": functools.partial(mixed, method="blocks"),
        "ragged_dot": functools.partial(mixed, method="ragged"),
        "every expert": every_expert,
        "equal rows": equal_rows,
    }

    def step(way: Any) -> Any:
        loss = lambda *a: jnp.sum(jnp.square(way(*a)))  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, weight, owner).compile()

    calls = {name: step(way) for name, way in ways.items()}
    times = medians(
        {name: lambda call=call: call(x, weight, owner) for name, call in calls.items()},
        repeats,
        warmup=1,
    )
    columns: dict[str, dict[str, Quantity]] = {}
    for name, time in times.items():
        columns[f"{name}, {experts} experts"] = {
            "both": time,
            "of equal rows": ratio(time, times["equal rows"]),
        }
    return columns


def mixed(
    x: Float[Array, "N D"],
    weight: Float[Array, "E D F"],
    owner: Int[Array, "N K"],
    method: str,
    backend: str | None = None,
) -> Float[Array, "N D"]:
    """sum_k silu(x W_k) W_k^T of the chosen experts."""
    groups = grouped.make_groups(owner.reshape(-1), len(weight), method=method, backend=backend)
    place = groups.place.reshape(owner.shape)
    rows = grouped.spread(x, groups.source, place)
    rows = grouped.grouped_feed_forward(groups, rows, [weight], [], weight, jax.nn.silu)
    return grouped.collect(rows, jnp.ones(owner.shape, x.dtype), groups.source, place)


def every_expert(
    x: Float[Array, "N D"], weight: Float[Array, "E D F"], owner: Int[Array, "N K"]
) -> Float[Array, "N D"]:
    """The same, by all experts of all tokens, most of which are then weighted with 0."""
    chosen = jnp.sum(jax.nn.one_hot(owner, len(weight)), axis=1)

    def add(total: Array, expert: tuple[Array, Array]) -> tuple[Array, None]:
        own, hot = expert
        return total + hot[:, None] * (jax.nn.silu(x @ own) @ own.T), None

    return jax.lax.scan(add, jnp.zeros_like(x), (weight, chosen.T))[0]


def equal_rows(
    x: Float[Array, "N D"], weight: Float[Array, "E D F"], owner: Int[Array, "N K"]
) -> Float[Array, "N D"]:
    """Another result at the same arithmetic: every expert takes as many rows, in their order."""
    rows = jnp.concatenate([x] * owner.shape[1]).reshape(len(weight), -1, x.shape[1])
    hidden = jax.nn.silu(jnp.einsum("enx,exf->enf", rows, weight))
    y = jnp.einsum("enf,exf->enx", hidden, weight)
    return jnp.sum(y.reshape(owner.shape[1], *x.shape), axis=0)
