"""Denoising diffusion: schedules, targets, guidance, and samplers as pure functions.

x_t = alpha_t x + sigma_t e with e ~ N(0, 1), t from 0 (no noise) to 1, alpha^2 + sigma^2 = 1. A
model predicts the noise e, or the velocity v = alpha e - sigma x (Salimans and Ho, arXiv
2202.00512).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from sharding.errors import UserError

COSINE, LINEAR = "cosine", "linear"
NOISE, VELOCITY = "noise", "velocity"
LAST = 0.999
"""The time at which samplers begin: at 1 the noise alone tells nothing of x."""
BETAS = (0.1, 20.0)
"""Rates of noise of "linear" at t = 0 and 1: 1e-4 and 0.02 a step of a thousand."""
WAVES = 4
"""Sines and cosines of the time, each."""

Predict = Callable[[Array, Array], Array]
"""(x_t, t) -> what is predicted; t is a number."""


def levels(t: Float[Array, "*B"], schedule: str = COSINE) -> tuple[Array, Array]:
    """alpha and sigma at times t.

    Args:
      t: from 0 to 1.
      schedule: "cosine", alpha = cos(pi t / 2) (arXiv 2102.09672, without its offset), or "linear":
        beta grows evenly, alpha = exp(-integral of beta / 2) (arXiv 2006.11239, 2011.13456).

    Raises:
      UserError: an unknown schedule.
    """
    if schedule == COSINE:
        return jnp.cos(jnp.pi / 2 * t), jnp.sin(jnp.pi / 2 * t)
    if schedule != LINEAR:
        raise UserError(f"schedule '{schedule}' is not one of {COSINE}, {LINEAR}")
    low, high = BETAS
    square = -low * t - (high - low) / 2 * t**2
    return jnp.exp(square / 2), jnp.sqrt(-jnp.expm1(square))


def shifted(t: Float[Array, "*B"], by: float) -> Float[Array, "*B"]:
    """The times at which alpha^2 / sigma^2 of the cosine schedule is that at t, divided by `by`.

    Several pictures of one thing tell of each other, so that the same noise hides less: n of them
    are given n times the noise (arXiv 2412.03632; 2301.11093 of one large picture).
    """
    alpha, sigma = levels(t)
    return 2 / jnp.pi * jnp.arctan2(math.sqrt(by) * sigma, alpha)


def waves(t: Float[Array, B], count: int = WAVES) -> Float[Array, "B 2C"]:
    """sin(2^k pi t) and cos(2^k pi t) for k = 0 ... C - 1: what a model is told of the time.

    Args:
      t: from 0 to 1.
      count: C.
    """
    angles = jnp.pi * t[:, None] * 2.0 ** jnp.arange(count)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def noised(x: Array, noise: Array, alpha: Array, sigma: Array) -> Array:
    """x_t; alpha and sigma are broadcast."""
    return alpha * x + sigma * noise


def target(kind: str, x: Array, noise: Array, alpha: Array, sigma: Array) -> Array:
    """What a model of that kind, "noise" or "velocity", is to predict."""
    _check(kind)
    return noise if kind == NOISE else alpha * noise - sigma * x


def parts(kind: str, given: Array, x_t: Array, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """x and the noise, by what was predicted at x_t."""
    _check(kind)
    if kind == NOISE:
        return (x_t - sigma * given) / alpha, given
    return alpha * x_t - sigma * given, sigma * x_t + alpha * given


def guided(conditioned: Array, free: Array, scale: float) -> Array:
    """Classifier-free guidance (arXiv 2207.12598): free + scale (conditioned - free)."""
    return free + scale * (conditioned - free)


def sample(
    predict: Predict,
    start: Array,
    key: Array,
    steps: int,
    eta: float = 0.0,
    kind: str = VELOCITY,
    schedule: str = COSINE,
) -> Array:
    """x from noise in so many steps, evenly from t = 0.999 to 0.

    Each goes to alpha' x + sqrt(sigma'^2 - s^2) e + s z, with x and e as they are predicted, z new
    noise and s = eta sigma' / sigma sqrt(1 - (alpha / alpha')^2) (DDIM, arXiv 2010.02502, eq. 12
    and 16).

    Args:
      predict: the model.
      start: noise, N(0, 1); its dtype is that of every x_t.
      key: random key of the new noise.
      steps: how many.
      eta: 0 adds none (DDIM); 1 is the ancestral sampler (DDPM).
      kind: what is predicted.
      schedule: see `levels`.
    """
    times = jnp.linspace(LAST, 0, steps + 1)

    def step(x: Array, given: tuple[Array, Array, Array]) -> tuple[Array, None]:
        now, then, key = given
        (alpha, sigma), (alpha_then, sigma_then) = levels(now, schedule), levels(then, schedule)
        clean, noise = parts(kind, predict(x, now), x, alpha, sigma)
        share = jnp.clip(1 - (alpha / alpha_then) ** 2, 0)
        spread = eta * sigma_then / sigma * jnp.sqrt(share)
        kept = jnp.sqrt(jnp.clip(sigma_then**2 - spread**2, 0))
        x_then = alpha_then * clean + kept * noise
        if eta:
            x_then += spread * jax.random.normal(key, x.shape, x.dtype)
        return x_then.astype(x.dtype), None

    return lax.scan(step, start, (times[:-1], times[1:], jax.random.split(key, steps)))[0]


def _check(kind: str) -> None:
    if kind not in (NOISE, VELOCITY):
        raise UserError(f"target '{kind}' is not one of {NOISE}, {VELOCITY}")
