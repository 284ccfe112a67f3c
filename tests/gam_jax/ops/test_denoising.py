"""Denoising of Gaussians, whose best denoiser and whose samples are known in closed form."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from gam_jax.ops.denoising import (
    COSINE,
    LINEAR,
    NOISE,
    VELOCITY,
    guided,
    levels,
    noised,
    parts,
    sample,
    shifted,
    target,
)
from sharding.errors import UserError
from tests.arrays import put, single

MEAN, SPREAD = 1.5, 0.4
TIMES = np.linspace(0.01, 0.99, 9)


def best(kind, schedule, mean=MEAN):
    """E[target | x_t] of x ~ N(mean, SPREAD^2)."""

    def predict(x, t):
        alpha, sigma = levels(t, schedule)
        noise = sigma * (x - alpha * mean) / (sigma**2 + (alpha * SPREAD) ** 2)
        clean = (x - sigma * noise) / alpha
        return target(kind, clean, noise, alpha, sigma)

    return predict


@pytest.mark.parametrize("schedule", [COSINE, LINEAR])
def test_levels_keep_the_variance_and_lose_the_signal(schedule):
    found = jax.jit(levels, static_argnums=1)(TIMES, schedule)
    alpha, sigma = (np.asarray(x) for x in found)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)
    assert np.all(np.diff(alpha) < 0)
    if schedule == LINEAR:  # the product of 1 - beta over a thousand steps, as DDPM has it
        betas = np.linspace(1e-4, 0.02, 1000)
        wanted = np.sqrt(np.cumprod(1 - betas))[(TIMES * 1000).astype(int) - 1]
        np.testing.assert_allclose(alpha, wanted, atol=2e-3)


def test_shifted_times_have_so_many_times_less_signal():
    """log SNR' = log SNR - log n."""
    ratios = []
    for t in (TIMES, np.asarray(shifted(put(TIMES, np.float32), 6.0), np.float64)):
        ratios.append(np.log(np.cos(np.pi / 2 * t) ** 2 / np.sin(np.pi / 2 * t) ** 2))
    np.testing.assert_allclose(ratios[1], ratios[0] - np.log(6), atol=1e-4)
    np.testing.assert_allclose(shifted(put([0.0, 1.0], np.float32), 6.0), [0, 1], atol=1e-6)


@pytest.mark.parametrize("kind", [NOISE, VELOCITY])
def test_what_was_predicted_tells_both_parts(kind):
    x, noise = single([[1.0, -2.0], [0.5, 3.0]])

    @jax.jit
    def both(x, noise, time):
        alpha, sigma = levels(time)
        predicted, seen = target(kind, x, noise, alpha, sigma), noised(x, noise, alpha, sigma)
        return parts(kind, predicted, seen, alpha, sigma)

    found = both(x, noise, 0.3)
    np.testing.assert_allclose(found, (x, noise), atol=1e-5)


@pytest.mark.parametrize("schedule", [COSINE, LINEAR])
@pytest.mark.parametrize("kind", [NOISE, VELOCITY])
def test_ddim_carries_noise_to_the_gaussian_by_its_affine_map(kind, schedule):
    """In one dimension the flow maps N(0, 1) to N(m, s^2) as m + s z, but for the size of steps."""
    run = functools.partial(sample, best(kind, schedule), kind=kind, schedule=schedule)
    z = np.array([-2.0, 0.0, 1.0], np.float32)
    found = jax.jit(lambda z: run(z, jax.random.key(0), 400))(z)
    np.testing.assert_allclose(found, MEAN + SPREAD * z, atol=0.02)
    if (kind, schedule) == (VELOCITY, COSINE):
        low = jax.jit(lambda z: sample(best(kind, schedule), z, jax.random.key(0), 40))
        found = low(put(z, "bfloat16"))
        assert found.dtype == "bfloat16"
        np.testing.assert_allclose(np.asarray(found, "float32"), MEAN + SPREAD * z, atol=0.15)


def test_the_ancestral_sampler_has_the_mean_and_the_variance():
    draws = jax.random.normal(jax.random.key(1), (4000,))
    run = jax.jit(lambda z: sample(best(VELOCITY, COSINE), z, jax.random.key(2), 200, eta=1.0))
    found = np.asarray(run(draws), np.float64)
    assert abs(found.mean() - MEAN) < 5 * SPREAD / np.sqrt(4000)
    assert abs(found.var() / SPREAD**2 - 1) < 5 * np.sqrt(2 / 4000) + 0.02
    assert (
        abs(np.corrcoef(found, draws)[0, 1]) < 0.1
    )  # DDIM keeps what the noise said; this forgets


def test_guidance_goes_beyond_the_condition_by_the_difference():
    """Of equal spreads: a scale w makes the mean m0 + w (m1 - m0)."""
    one, none = best(NOISE, COSINE, 1.0), best(NOISE, COSINE, 0.5)

    def predict(x, t):
        return guided(one(x, t), none(x, t), 3.0)

    run = jax.jit(lambda z: sample(predict, z, jax.random.key(0), 400, kind=NOISE))
    np.testing.assert_allclose(run(np.zeros(1, np.float32)), [0.5 + 3 * 0.5], atol=0.02)


def test_what_is_not_known_is_refused():
    with pytest.raises(UserError, match="cosine, linear"):
        levels(np.zeros(1), "square")
    with pytest.raises(UserError, match="noise, velocity"):
        target("clean", 0, 0, 0, 0)
