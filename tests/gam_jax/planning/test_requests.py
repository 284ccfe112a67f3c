"""Requests that servers are planned for: as a use has them, or as a file says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gam_jax.planning.requests import TRACES, drawn, read_trace
from sharding.errors import UserError


@pytest.mark.parametrize("use", TRACES)
def test_lengths_have_the_mean_and_deviation_of_the_use(use):
    found = drawn(TRACES[use], 2.0, 0, 20_000)
    for name in ("reads", "writes"):
        mean, deviation = getattr(TRACES[use], name)
        lengths = np.asarray([getattr(asked, name) for asked in found])
        assert lengths.mean() == pytest.approx(mean, rel=0.05)
        assert lengths.std() == pytest.approx(deviation, rel=0.15)
        assert lengths.min() >= 1
    gaps = np.diff([asked.arrives for asked in found])
    assert gaps.mean() == pytest.approx(0.5, rel=0.05)
    assert gaps.std() == pytest.approx(0.5, rel=0.05)  # as a Poisson process has it
    assert len(drawn(TRACES[use], 2.0, 0)) == TRACES[use].count


def test_the_same_seed_draws_the_same_at_any_rate():
    slow, fast = (drawn(TRACES["chat"], rate, 3, 50) for rate in (1.0, 4.0))
    at_once = drawn(TRACES["chat"], math.inf, 3, 50)
    for a, b, c in zip(slow, fast, at_once, strict=True):
        assert (a.reads, a.writes) == (b.reads, b.writes) == (c.reads, c.writes)
        assert a.arrives == pytest.approx(4 * b.arrives)
        assert c.arrives == 0


def test_a_file_is_read_by_arrival(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("arrives,reads,writes\n7.5,10,3\n5,4,2\n")
    first, second = read_trace(path)
    assert (first.arrives, first.reads, first.writes) == (0, 4, 2)
    assert (second.arrives, second.reads, second.writes) == (2.5, 10, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "its first line must be arrives,reads,writes"),
        ("arrives,reads\n1,2\n", "its first line must be"),
        ("arrives,reads,writes\n", "there is no request in it"),
        ("arrives,reads,writes\n1,2,x\n", "line 2: give a time and two whole numbers"),
        ("arrives,reads,writes\n1,2,3\n1,2\n", "line 3: give a time"),
        ("arrives,reads,writes\n0,10,10,999\n", "line 2: it has more cells than the first line"),
        ("arrives,reads,writes\n1,0,3\n", "line 2: a request arrives at a time"),
        ("arrives,reads,writes\nnan,1,3\n", "line 2: a request arrives at a time"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, text, says):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as error:
        read_trace(path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="it cannot be read"):
        read_trace(tmp_path / "nothing.csv")
