"""A save is suspect if and only if a gradient norm since the last one is far above those before."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.training.divergence import RATIO, WINDOW, GradientNorms

NORMS = st.lists(
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 99.0, 101.0, 1e4, 1e9, math.inf, math.nan]), max_size=250
)


def is_spike(norms, place):
    """By the definition, in NumPy."""
    before = np.array(norms[max(0, place - WINDOW) : place])
    before = before[np.isfinite(before)]
    middle = np.median(before) if len(before) else 0
    return not np.isfinite(norms[place]) or bool(middle and norms[place] > RATIO * middle)


@given(NORMS, st.integers(1, 120))
def test_it_is_what_the_definition_says_with_any_interval_between_saves(norms, every):
    found = GradientNorms()
    for step, norm in enumerate(norms, 1):
        found.add(np.float32(norm))
        if step % every == 0:
            own = [float(np.float32(x)) for x in norms[:step]]
            first = max(step - every, step - WINDOW)
            spikes = [i + 1 for i in range(first, step) if is_spike(own, i)]
            said = found.spike(step)
            assert bool(said) == bool(spikes)
            if spikes:
                assert f"the gradient norm of step {spikes[0]} was" in said
            found.saved()


@given(NORMS, st.integers(0, 250))
def test_a_run_that_goes_on_judges_as_the_one_without_a_break(norms, at):
    whole = GradientNorms()
    for norm in norms[:at]:
        whole.add(norm)
    parts = GradientNorms(whole.last())
    whole.saved()
    for step, norm in enumerate(norms[at:], at + 1):
        whole.add(norm)
        parts.add(norm)
        assert parts.spike(step) == whole.spike(step)


def test_a_save_that_failed_leaves_its_steps_to_the_next_one():
    norms = GradientNorms([1.0] * 10)
    norms.add(1e6)
    norms.saved()
    norms.add(1.0)
    assert not norms.spike(12)
    norms.lost()
    assert "step 11" in norms.spike(12)


@pytest.mark.parametrize("first", [0.0, 1.0])
def test_the_first_step_has_nothing_to_be_compared_with(first):
    norms = GradientNorms()
    norms.add(first)
    assert not norms.spike(1)
    assert norms.last() == [first]
