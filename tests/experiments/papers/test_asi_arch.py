"""The fitness is its formula, and a landscape the sum of its parts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from experiments.papers.asi_arch import CHOICES, COUPLED, LIMIT, Landscape, fitness, gain
from gam_jax.search import search, strategy_of


def test_the_fitness_is_that_of_the_paper():
    """By hand, with sigmoid(0.1) = 0.52497919: DeltaNet's is a half, Gated DeltaNet's 0.6668."""
    assert fitness(0.1, -0.1, 5.0) == pytest.approx(0.5, abs=1e-12)
    assert fitness(0.1, 0.1, 10.0) == pytest.approx((2 * 0.52497919 + 1) / 3, abs=1e-8)
    assert fitness(gain(4.5678, 4.5749), 0.0, 10.0) == pytest.approx(0.66679600, abs=1e-8)
    assert [gain(x, 2.0) for x in (2.0, 1.9, 1.0, 9.0)] == pytest.approx([0, 0.05, 0.1, -0.1])
    assert gain(2.1, 2.0, higher=True) == pytest.approx(0.05)


def test_a_landscape_is_the_sum_of_its_parts_and_the_best_point_is_found():
    random, land = np.random.default_rng(3), Landscape(2, 3)
    wanted = np.zeros((2,) * CHOICES)
    for choice in range(CHOICES):
        part = random.normal(size=(2,) * COUPLED)
        for point in itertools.product(range(2), repeat=CHOICES):
            wanted[point] += part[tuple(point[(choice + i) % CHOICES] for i in range(COUPLED))]
    wanted -= wanted.min()
    np.testing.assert_allclose(land.losses - 1, LIMIT * wanted / np.median(wanted), atol=1e-12)
    assert land.base == pytest.approx(1 + LIMIT)
    found = search(land.space, strategy_of("all"), land.measure, land.space.size)
    assert land.losses[found.best.point] == 1.0
