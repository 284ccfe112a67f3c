"""Rotary positions."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sharding.bounds import Positive, Size, check_bounds


@dataclasses.dataclass(frozen=True)
class Yarn:
    """Wavelengths stretched for sequences longer than those of the training (YaRN).

    Channel pairs that turn less than `slow` times in `original` tokens are turned `factor` times
    slower, those that turn more than `fast` times as before; between the two, the slowing falls in
    a straight line. Source:
    Peng et al. 2023 (arXiv 2309.00071), section 3.2.

    Attributes:
      factor: 1 for none of it.
      original: tokens of the training.
      fast, slow: turns.
    """

    factor: Positive = 1.0
    original: Size = 4096
    fast: Positive = 32.0
    slow: Positive = 1.0

    def __post_init__(self) -> None:
        check_bounds(self)


def rotary(
    x: Float[Array, "B T H K"], places: Int[Array, "... T"], theta: float, yarn: Yarn = Yarn()
) -> Float[Array, "B T H K"]:
    """Turns channel pairs (i, i + K/2) of each head by the angle place * theta^(-2i/K).

    The product of a turned query and a turned key depends on how far apart they stand alone.
    Source: Su et al. 2021, "RoFormer" (arXiv 2104.09864), eq. 34; pairs are the two halves of a
    head, as Hugging Face's Llama has them, not neighbours as in the paper.

    Args:
      x: queries or keys; K is even.
      places: of each token in the whole sequence, [T], or [B, T] where rows stand at unlike places.
      theta: base of the wavelengths, usually 10,000 or more.
      yarn: stretches them.

    Returns:
      The dtype of x; angles in float32.
    """
    half = x.shape[-1] // 2
    speeds = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    speeds = speeds if yarn.factor == 1 else speeds * _stretched(yarn, half, theta)
    angles = places.astype(jnp.float32)[..., None, None] * speeds  # [(B,) T, 1, K/2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _stretched(yarn: Yarn, half: int, theta: float) -> Float[Array, K]:
    """1 / factor for the slow pairs, 1 for the fast ones, a ramp between."""

    def pair(turns: float) -> float:
        """The pair (as a real number) that turns so often in the training's tokens."""
        return half * math.log(yarn.original / (turns * 2 * math.pi)) / math.log(theta)

    low = max(math.floor(pair(yarn.fast)), 0)
    high = min(math.ceil(pair(yarn.slow)), 2 * half - 1)
    ramp = (jnp.arange(half) - low) / (high - low if high > low else 1e-3)
    slow = jnp.clip(ramp, 0, 1)
    return 1 - slow + slow / yarn.factor
