"""Requests that `gam benchmark serve --url` draws, and the figures it makes of their times."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.benchmark.load import Asked, Load, _figures, drawn
from sharding.errors import UserError


def test_requests_are_the_same_each_time_and_come_by_poisson():
    load = Load("http://x/v1/", 5.0, 4000, (10, 20), (3, 7))
    assert load.base == "http://x/v1"
    one = drawn(load, "m")
    assert one == drawn(load, "m")
    gaps = np.diff([0.0, *(each.due for each in one)])
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() == pytest.approx(0.2, rel=0.05)  # of exponential gaps, the mean too
    assert {len(each.body["prompt"]) for each in one} == set(range(10, 21))
    assert {each.body["max_tokens"] for each in one} == set(range(3, 8))


def test_percentiles_are_of_what_was_answered_and_refusals_are_counted_by_code():
    """Due at 0, 1 and 2; the second waits for half a second."""
    asked = [
        Asked(0.0, {}, 0.0, [0.1, 0.2, 0.4], 3),
        Asked(1.0, {}, 1.25, [1.5, 1.6], 2),
        Asked(2.0, {}, 2.0, refused="429"),
        Asked(2.0, {}, 2.0, [2.1], refused="lost"),
    ]
    found = {name: figure.median for name, figure in _figures(asked).items()}
    assert found["first token, p50"] == pytest.approx(0.3)
    assert found["between tokens, p50"] == pytest.approx(0.1)
    assert found["between tokens, p99"] == pytest.approx(0.198)
    assert found["speed"] == pytest.approx(5 / 1.6)
    assert found["sent late, p99"] == pytest.approx(0.25, rel=0.05)
    assert (found["answered"], found["refused, 429"], found["refused, lost"]) == (2, 1, 1)
    one = _figures([Asked(0.0, {}, 0.0, [0.1], 1)])
    assert not any(name.startswith("between") for name in one)  # of one piece there is no time
    with pytest.raises(UserError, match="not one of 1 requests was answered with text: 400: no"):
        _figures([Asked(0.0, {}, refused="400", why="no")])
