"""Times that follow the model are predicted, also far outside; errors are the three of the rule."""

from __future__ import annotations

import numpy as np
import pytest

from gam_jax.planning.calibrate import Roofline, calibrate, errors, reached
from sharding.errors import UserError


def sizes(count=120, longest=1024, seed=0):
    draw = np.random.default_rng(seed)
    return np.exp(draw.uniform(np.log(32), np.log(longest), (count, 3)))


def slower(sizes, roofline=Roofline(1e12, 1e10)):
    """A machine that is slower than its roofline by what depends on m, and never reaches it."""
    return roofline.seconds(sizes) * 1.3 * (sizes[:, 0] / 32) ** -0.2 * 1.5


def test_products_that_were_not_measured_are_predicted():
    seen, new = sizes(), sizes(50, seed=1)
    truth = slower(new)
    fitted = errors(calibrate(seen, slower(seen)).seconds(new), truth)
    alone = errors(reached(seen, slower(seen)).seconds(new), truth)
    assert fitted.mean < 0.1 < alone.mean


def test_outside_of_what_was_measured_time_grows_as_the_rooflines():
    """A table of measured times, or a forest of trees, would say the longest it has seen."""
    seen = sizes()
    found = calibrate(seen, slower(seen))
    longer = np.array([[1024.0, 1024, 1024], [1024, 1024, 4096], [1024, 1024, 16_384]])
    grown = found.seconds(longer)
    assert grown[2] > 10 * slower(seen).max()
    assert grown[2] / grown[1] == pytest.approx(4, rel=0.05)


def test_a_roofline_is_what_was_reached_and_has_two_sides():
    found = reached(np.array([[100, 100, 100], [1000, 1, 1]]), np.array([1e-3, 1e-3]))
    assert found.flops == pytest.approx(2e9)
    assert found.bandwidth == pytest.approx(4 * 30_000 / 1e-3)
    times = Roofline(100, 10, overhead=1.0).seconds(np.array([[1, 1, 1], [50, 50, 50]]), 1)
    np.testing.assert_allclose(times, [1 + 0.3, 1 + 2500])


def test_the_three_errors():
    found = errors(np.array([1.0, 1.5, 2.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0]))
    assert (found.mean, found.worst) == (0.375, 1.0)
    assert found.ninetieth == pytest.approx(0.85)


@pytest.mark.parametrize(
    "call",
    [
        lambda: errors(np.ones(2), np.array([1.0, 0.0])),
        lambda: errors(np.ones(0), np.ones(0)),
        lambda: calibrate(np.ones((3, 3)), np.ones(3)),
        lambda: calibrate(np.ones((5, 3)), np.zeros(5)),
        lambda: calibrate(np.ones((5, 2)), np.ones(5)),
    ],
)
def test_too_little_to_go_by_is_refused(call):
    with pytest.raises(UserError):
        call()
