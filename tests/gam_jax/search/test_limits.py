"""A penalty is 0 where all limits hold, and only there; 1 for each figure at its bound."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gam_jax.search import Limit, penalty
from sharding.errors import UserError

LIMITS = (Limit("seconds", 2.0, 5.0), Limit("bytes", 10.0, 11.0))


def test_it_is_0_where_all_limits_hold_and_only_there_and_grows():
    random = np.random.default_rng(0)
    for seconds, size in random.uniform((0, 8), (6, 12), (500, 2)):
        figures = {"seconds": seconds, "bytes": size, "more": 99.0}
        found = penalty(figures, LIMITS)
        assert (found == 0) == (seconds <= 2 and size <= 10)
        assert penalty({**figures, "seconds": seconds + 0.1}, LIMITS) >= found
    assert penalty({"seconds": 2.0, "bytes": 10.0}, LIMITS) == 0


def test_it_is_1_for_each_figure_at_its_bound():
    assert penalty({"seconds": 5.0, "bytes": 10.0}, LIMITS) == 1
    assert penalty({"seconds": 1.0, "bytes": 11.0}, LIMITS) == 1
    assert penalty({"seconds": 5.0, "bytes": 11.0}, LIMITS) == 2


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="bound 2 is not above 2"):
        Limit("seconds", 2, 2)
    for most, bound, wrong in (
        (math.nan, 2, "most=nan"),
        (-math.inf, 2, "most=-inf"),
        (1, math.inf, "bound=inf"),
        (1, math.nan, "bound=nan"),
    ):
        with pytest.raises(UserError, match=f"limit of seconds: {wrong}: give a finite number"):
            Limit("seconds", most, bound)
    with pytest.raises(UserError, match="limit of bytes: there is no such figure"):
        penalty({"seconds": 1.0}, LIMITS)


@pytest.mark.parametrize("figure", [math.nan, np.float32("nan"), math.inf])
def test_a_figure_that_is_no_number_exceeds_every_limit(figure):
    assert penalty({"seconds": figure, "bytes": 1.0}, LIMITS) == math.inf
