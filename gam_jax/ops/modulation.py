"""Feature-wise modulations: experts that scale and shift what one shared expert gives."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from gam_jax.ops import grouped
from sharding import collectives


def modulate(
    h: Float[Array, "N D"],
    experts: Int[Array, "N K"],
    weights: Float[Array, "N K"],
    modulation: Float[Array, "E D 2D"],
    bias: Float[Array, "E 2D"],
    axis: str | None = None,
    method: str = "auto",
    backend: str | None = None,
) -> Float[Array, "N D"]:
    """sum_k w_k ((h G_e + g_e) * h + h C_e + c_e) over a token's chosen experts e.

    A mixture of modulations is one modulation, gamma * h + beta, with gamma = sum_k w_k (h G_e +
    g_e), and beta likewise. So scales and shifts are mixed before they meet h. Source: MoFME
    (arXiv 2312.16610); feature-wise modulation: FiLM (arXiv 1709.07871).

    Args:
      h: outputs of the shared expert, one row a token.
      experts: the experts that each token goes to.
      weights: their weights w_k.
      modulation: the matrices G_e and C_e of this device's experts, side by side.
      bias: the vectors g_e and c_e, likewise.
      axis: mesh axis that splits the experts, and N too. Tokens are gathered along it, and what
        its devices' experts make of them is summed where a token came from: (n - 1) 3 N D numbers a
        device, whatever the routing.
      method: of the grouped products, see `gam_jax.ops.grouped.make_groups`.
      backend: likewise.

    Returns:
      The dtype of h.
    """
    count = modulation.shape[0]
    every = h
    if axis is not None:
        every, experts, weights = (
            lax.all_gather(collectives.as_varying(x, axis), axis, tiled=True)
            for x in (h, experts, weights)
        )
    own = experts - collectives.axis_index(axis) * count
    own = jnp.where((own >= 0) & (own < count), own, count)  # another device's: of no group
    groups = grouped.make_groups(own.reshape(-1), count, method=method, backend=backend)
    place = groups.place.reshape(experts.shape)
    rows = grouped.spread(every, groups.source, place)
    rows = grouped.grouped_product(groups, rows, modulation, bias)
    mixed = grouped.collect(rows, weights, groups.source, place)
    mixed = collectives.reduce_scatter(mixed, axis, dim=0)
    gamma, beta = jnp.split(mixed, 2, axis=1)
    return gamma * h + beta
