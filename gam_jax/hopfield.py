"""A Hopfield store: patterns written by Hebb's rule, read back by falling energy.

Spins s in {-1, +1}^N, patterns xi [K, N] with entries in {-1, 0, +1}: a blank, 0, leaves its
neuron free, so that several patterns can be retrieved at once. The couplings
W = sum_k xi_k xi_k^T / N are never made: all that is needed of them is the overlaps
m_k = xi_k . s / N. Source: Hopfield 1982; with blanks Agliari et al. 2023, "Parallel learning by
multitasking neural networks" (arXiv 2308.04106).

Neurons may be split over a mesh axis, inside `jax.shard_map`: what is sent is K overlaps.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sharding import collectives


def draw_patterns(key: Array, patterns: int, neurons: int, blank: float = 0.0) -> Array:
    """[K, N]: each entry is 0 with probability `blank`, else a fair sign."""
    zero, sign = jax.random.split(key)
    shape = (patterns, neurons)
    signs = jax.random.rademacher(sign, shape, jnp.float32)
    return jnp.where(jax.random.bernoulli(zero, blank, shape), 0.0, signs)


def overlaps(
    patterns: Float[Array, "K N"], spins: Float[Array, N], axis: str | None = None
) -> Float[Array, K]:
    """m_k = xi_k . s / N: how much of each pattern the state holds."""
    neurons = patterns.shape[1] * collectives.axis_size(axis)
    return collectives.psum(patterns @ spins, axis) / neurons


def energy(
    patterns: Float[Array, "K N"], spins: Float[Array, N], axis: str | None = None
) -> Float[Array, ""]:
    """E = -(N / 2) sum_k m_k^2 + (1 / 2N) sum_k,i xi_ki^2: of the couplings, without self-terms."""
    neurons = patterns.shape[1] * collectives.axis_size(axis)
    own = collectives.psum(jnp.sum(jnp.square(patterns)), axis)
    squares = jnp.sum(jnp.square(overlaps(patterns, spins, axis)))
    return -neurons / 2 * squares + own / (2 * neurons)


def retrieve(patterns: Float[Array, "K N"], spins: Float[Array, N], order: Array) -> Array:
    """One after another, the neurons of `order` follow their fields; energy never rises.

    s_i = sign(h_i), h_i = sum_k xi_ki m_k - s_i |xi_i|^2 / N; s_i stays where h_i = 0. The
    overlaps are kept up to date, so a step costs O(K).
    """
    neurons = patterns.shape[1]
    columns = patterns.T

    def step(state: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        spins, sums = state  # sums are N m, which whole numbers keep exact
        xi, old = columns[i], spins[i]
        field = xi @ sums - old * jnp.sum(jnp.square(xi))
        new = jnp.where(field == 0, old, jnp.sign(field))
        return (spins.at[i].set(new), sums + xi * (new - old)), None

    sums = jnp.round(overlaps(patterns, spins) * neurons)
    return lax.scan(step, (spins, sums), order)[0][0]


def retrieve_blocks(
    patterns: Float[Array, "K N"],
    spins: Float[Array, N],
    blocks: int,
    sweeps: int = 1,
    axis: str | None = None,
) -> Array:
    """Neurons in `blocks` parts, each part's all at once: two products and one sum of overlaps.

    One block is the parallel dynamics, which may swing between two states for ever; many come
    near the sequential one. Part b is every `blocks`-th neuron from b on, of every device.

    Args:
      patterns: K patterns, this device's neurons of each.
      spins: the state of this device's neurons.
      blocks: parts of a sweep.
      sweeps: over all neurons.
      axis: mesh axis that splits the neurons.
    """
    neurons = patterns.shape[1] * collectives.axis_size(axis)
    own = jnp.sum(jnp.square(patterns), axis=0) / neurons
    part = jnp.arange(patterns.shape[1]) % blocks

    def step(spins: Array, block: Array) -> tuple[Array, None]:
        field = overlaps(patterns, spins, axis) @ patterns - spins * own
        new = jnp.where(jnp.abs(field) < 0.5 / neurons, spins, jnp.sign(field))
        return jnp.where(part == block, new, spins), None

    spins = collectives.vary_alike(spins, patterns)[0]
    return lax.scan(step, spins, jnp.tile(jnp.arange(blocks), sweeps))[0]


def hierarchy(patterns: int, blank: float) -> Float[Array, K]:
    """Overlaps of the state that holds the first pattern, then the second where that is blank, ...

    m_k = d^(k-1) (1 - d): arXiv 2308.04106, the hierarchical solution without noise.
    """
    return blank ** jnp.arange(patterns) * (1 - blank)


def hierarchy_is_stable(patterns: int, blank: float) -> bool:
    """Whether the neurons of the first pattern that all others oppose stay: 1 - 2d + d^K > 0."""
    return 1 - 2 * blank + blank**patterns > 0


def flipped(load: float) -> Float[Array, ""]:
    """What part of a stored pattern's neurons leave it in one step, at K / N = `load`, no blanks.

    Each field is the signal 1 and noise of variance `load`: Phi(-1 / sqrt(load)) (Hertz, Krogh
    and Palmer 1991, section 2.2).
    """
    return jax.scipy.stats.norm.cdf(-1 / jnp.sqrt(load))


def dataset_entropy(examples: int, quality: float) -> float:
    """rho = (1 - r^2) / (M r^2): what M noisy examples of a pattern leave unknown of it.

    An example keeps each sign with probability (1 + r) / 2 (arXiv 2308.04106, section on learning).
    """
    return (1 - quality**2) / (examples * quality**2)


def learned(examples: Float[Array, "M K N"]) -> Float[Array, "K N"]:
    """Supervised Hebbian learning: the mean of each pattern's examples takes its place."""
    return jnp.mean(examples, axis=0)


def supervised_accuracy(examples: int, quality: float) -> Float[Array, ""]:
    """The overlap of the sign of such a mean with its pattern, by the normal approximation.

    The mean is r plus noise of variance (1 - r^2) / M, so the overlap is
    1 - 2 Phi(-1 / sqrt(rho)) = erf(1 / sqrt(2 rho)): it depends on rho alone.
    """
    return jax.lax.erf(1 / jnp.sqrt(2 * jnp.asarray(dataset_entropy(examples, quality))))
