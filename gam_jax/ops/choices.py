"""Weights of several options by logits: as a mixture, or by a draw; and what follows of them.

Sources: DARTS (arXiv 1806.09055) for a softmax; TangleNAS (arXiv 2312.10440) for sparsemax (arXiv
1602.02068); DrNAS (arXiv 2006.10355) for Dirichlet weights; GDAS (arXiv 1910.04465) for Gumbel's;
ProxylessNAS (arXiv 1812.00332, section 3) for gates and expected costs; PC-DARTS (arXiv 1907.05737,
section 3) for channels that pass by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from sharding import collectives

ARCHITECTURE = "architecture"
"""The entry of a table in which logits stand, so that `*architecture/*` is a pattern of all."""

Weights = Callable[[Array, Array | None, float], Array]
"""(logits [N], key, temperature) -> weights [N], which sum to 1."""


def wide(x: Array) -> Array:
    """In float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def softmax(logits: Array, key: Array | None = None, temperature: float = 1.0) -> Array:
    """exp(a_i / t) / sum_j exp(a_j / t)."""
    return jax.nn.softmax(logits / temperature)


def sparsemax(logits: Array, key: Array | None = None, temperature: float = 1.0) -> Array:
    """The point of the simplex that is nearest to a / t: small weights are 0."""
    return optax.projections.projection_simplex(logits / temperature)


def dirichlet(logits: Array, key: Array | None, temperature: float = 1.0) -> Array:
    """A draw from Dirichlet(elu(a / t) + 1), with gradients through it."""
    assert key is not None
    alpha = jax.nn.elu(logits / temperature) + 1
    alike, alpha = collectives.vary_alike(key, alpha)  # all devices draw alike
    return jax.random.dirichlet(alike, alpha)


def gumbel(logits: Array, key: Array | None, temperature: float = 1.0) -> Array:
    """softmax((a + g) / t) with noise g of Gumbel's distribution: the colder, the nearer to one."""
    assert key is not None
    return jax.nn.softmax((logits + jax.random.gumbel(key, logits.shape)) / temperature)


WEIGHTS: Mapping[str, Weights] = {
    "softmax": softmax,
    "sparsemax": sparsemax,
    "dirichlet": dirichlet,
    "gumbel": gumbel,
}
"""By name."""
DRAWN = ("dirichlet", "gumbel")
"""Those that need a key."""


class Draw(NamedTuple):
    """Options of which one is active.

    Attributes:
      options: their numbers, int32 [M].
      active: which of them, int32: a number below M.
      gates: one-hot [M]; their gradient is that of a softmax over the logits of the M.
    """

    options: Int[Array, " M"]
    active: Int[Array, ""]
    gates: Float[Array, " M"]


def draw(logits: Float[Array, " N"], key: Array, count: int) -> Draw:
    """One option by softmax(logits), among M: all of them, or `count` drawn beforehand.

    Those drawn beforehand are without repetition, by the same probabilities; the active one is
    drawn by a softmax over theirs.

    Args:
      logits: of all.
      key: alike on all devices, so that these draw alike.
      count: M.
    """
    among, one = jax.random.split(key)
    options = jnp.arange(logits.shape[0])
    if count < logits.shape[0]:
        noisy = logits + jax.random.gumbel(among, logits.shape)
        options = lax.top_k(lax.stop_gradient(noisy), count)[1]
    own = logits[options]
    active = jax.random.categorical(one, lax.stop_gradient(own))
    return Draw(options.astype(jnp.int32), active.astype(jnp.int32), gates(own, active))


def likeliest(logits: Float[Array, " N"]) -> Draw:
    """The option of the largest logit, alone."""
    options = jnp.argmax(logits)[None].astype(jnp.int32)
    return Draw(options, jnp.zeros((), jnp.int32), jnp.ones(1, logits.dtype))


def gates(logits: Float[Array, " M"], active: Int[ArrayLike, ""]) -> Float[Array, " M"]:
    """One-hot of the active option; its gradient is that of softmax(logits), d_ij p_i - p_i p_j."""
    p = jax.nn.softmax(logits)
    hot = jax.nn.one_hot(active, logits.shape[0], dtype=p.dtype)
    return lax.stop_gradient(hot - p) + p


def others_kept(before: Float[Array, "*L N"], after: Float[Array, "*L N"]) -> Float[Array, "*L N"]:
    """New logits, those that have changed shifted so that all others keep their probabilities.

    By log(sum e^after / sum e^before) over the changed ones (ProxylessNAS, section 3.2.1).

    Args:
      before: of options, after any leading axes of stacked layers.
      after: likewise.
    """
    changed = before != after
    sums = [
        jax.nn.logsumexp(jnp.where(changed, x, -jnp.inf), axis=-1, keepdims=True)
        for x in (after, before)
    ]
    return jnp.where(changed, after - (sums[0] - sums[1]), after)


def expected_cost(logits: Float[Array, "*L N"], costs: Float[ArrayLike, "*L N"]) -> Array:
    """sum over layers of E[F] = sum_i p_i F_i; its gradient by logit i is p_i (F_i - E[F])."""
    return jnp.sum(jax.nn.softmax(logits, axis=-1) * jnp.asarray(costs))


def shuffled(x: Float[Array, "... D"], groups: int) -> Float[Array, "... D"]:
    """Channel r D / K + q goes to q K + r, of K groups: the first channels are dealt out."""
    parts = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return jnp.swapaxes(parts, -1, -2).reshape(x.shape)


def shuffle_of(channels: int, groups: int) -> Int[np.ndarray, " D"]:
    """The permutation of `shuffled`: which channel stands at each place."""
    place = np.arange(channels)
    return place % groups * (channels // groups) + place // groups


def edge_weights(logits: Float[Array, " E"], inputs: Sequence[int]) -> Float[Array, " E"]:
    """A softmax over the inputs of each node.

    Args:
      logits: of edges, those into the first node first.
      inputs: how many edges each node has.
    """
    ends = np.cumsum(inputs)[:-1]
    return jnp.concatenate([jax.nn.softmax(part) for part in jnp.split(logits, ends)])


def genotype(
    options: Float[Array, "E N"],
    edges: Float[Array, " E"],
    inputs: Sequence[int],
    none: int | None = None,
    keep: int = 2,
) -> list[list[tuple[int, int]]]:
    """What a cell keeps: for each node its best edges, best first, and the option on each.

    An option on an edge is worth softmax(options) of the edge times `edge_weights`; an edge is
    worth its best option (PC-DARTS, arXiv 1907.05737, section 3.2).

    Args:
      options: logits of the options on each edge.
      edges: of the edges.
      inputs: see `edge_weights`.
      none: an option that is no option; None for none.
      keep: edges of a node.

    Returns:
      For each node (option, which of its inputs).
    """
    worth = np.array(jax.nn.softmax(jnp.asarray(options), axis=1))
    worth *= np.asarray(edge_weights(jnp.asarray(edges), inputs))[:, None]
    if none is not None:
        worth[:, none] = -np.inf
    found, start = [], 0
    for count in inputs:
        own = worth[start : start + count]
        best = np.argsort(-own.max(axis=1), kind="stable")[:keep]
        found.append([(int(own[edge].argmax()), int(edge)) for edge in best])
        start += count
    return found
