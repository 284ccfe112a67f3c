"""The best plan for a chain of tasks is that of all cuts tried one by one."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.planning.fusion import KEEP, SPILL, STREAM, Chip, Task, best_plan, planned, recompute
from sharding.errors import UserError

amount = st.integers(0, 1000)
chains = st.lists(st.builds(Task, amount, amount, amount), min_size=1, max_size=10)
chips = st.builds(
    Chip, st.floats(0.5, 50), st.floats(0.5, 50), st.floats(0, 1500), st.integers(1, 64)
)


def every_plan(tasks, chip):
    places = range(1, len(tasks))
    for count in range(len(tasks)):
        for cuts in itertools.combinations(places, count):
            edges = (0, *cuts, len(tasks))
            yield planned(tasks, chip, list(itertools.pairwise(edges)))


@settings(max_examples=40, deadline=None)
@given(chains, chips)
def test_no_way_to_cut_is_faster(tasks, chip):
    best = best_plan(tasks, chip)
    assert best.seconds == pytest.approx(min(plan.seconds for plan in every_plan(tasks, chip)))
    assert best == planned(tasks, chip, best.groups)


def fast(chip, size):
    return Chip(chip.rate, chip.bandwidth, size, chip.tiles)


@given(chains, chips)
def test_with_fast_memory_without_end_nothing_is_spilled_and_nothing_waits(tasks, chip):
    plan = best_plan(tasks, fast(chip, math.inf))
    assert plan.spilled == 0
    assert plan.outputs == (KEEP,) * (len(tasks) - 1)


@given(chains, chips)
def test_without_fast_memory_what_fills_faster_than_it_spills_is_one_pipeline(tasks, chip):
    chip = fast(chip, 0)
    filling = sum(task.products for task in tasks) / chip.rate * (len(tasks) - 1) / chip.tiles
    if all(2 * task.output / chip.bandwidth > filling for task in tasks[:-1]):
        assert best_plan(tasks, chip).outputs == (STREAM,) * (len(tasks) - 1)


def test_an_output_that_does_not_fit_goes_and_comes_back():
    tasks = [Task(8, 100, 4), Task(8, 1)]
    plan = planned(tasks, Chip(2.0, 10.0, 50), [(0, 1), (1, 2)])
    assert (plan.outputs, plan.spilled) == ((SPILL,), 200)
    assert plan.seconds == pytest.approx(8 / 2 + 8 / 2 + (4 + 200) / 10)


def test_what_is_cheap_to_compute_is_computed_again():
    chip = Chip(10.0, 1.0, 0)
    assert recompute(Task(10, 5), chip)  # 1 s against 10 s
    assert not recompute(Task(1000, 5), chip)
    with pytest.raises(UserError, match="rate"):
        Chip(0, 1, 1)
