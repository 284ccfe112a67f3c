"""Tables of schedules: every task once and in time, published times and peaks, refusals."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.errors import UserError
from sharding.pipeline.tables import (
    GPIPE,
    INTERLEAVED,
    ONE_F_ONE_B,
    SCHEDULES,
    Task,
    make_table,
    one_way,
    ticks_of,
)

SIZES = st.tuples(
    st.sampled_from(SCHEDULES), st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)
)


def table_of(size):
    schedule, stages, parts, turns = size
    if schedule == INTERLEAVED:
        return make_table(schedule, stages, parts * stages, turns)
    return make_table(schedule, stages, parts)


@given(SIZES)
def test_every_task_is_there_once_and_after_what_it_waits_for(size):
    table_of(size).check()


@given(SIZES)
def test_every_stage_goes_each_way_vm_plus_p_minus_1_times(size):
    table = table_of(size)
    ticks = table.parts * table.turns + table.stages - 1
    assert (table.forward_ticks, table.backward_ticks) == (ticks, ticks)
    share = (table.stages - 1) / ticks
    assert table.idle_share() == pytest.approx(share)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 4))
def test_one_way_every_task_follows_that_which_it_waits_for_in_the_next_tick(stages, parts, turns):
    """Whether parts fill groups of stages or not; where they do, as often as a schedule does."""
    table = one_way(stages, parts, turns)
    ticks = ticks_of(table.forward)
    assert len(ticks) == stages * parts * turns
    for (stage, task), tick in ticks.items():
        if source := table.before(stage, task.turn):
            assert ticks[source[0], Task(task.part, source[1])] == tick - 1
    assert any(table.forward[0])
    assert any(table.forward[-1])
    if turns == 1 or parts % stages == 0:
        assert table.ticks == turns * parts + stages - 1


@pytest.mark.parametrize(
    ("schedule", "turns", "time"),
    [(GPIPE, 1, 33), (ONE_F_ONE_B, 1, 33), (INTERLEAVED, 2, 28.5), (INTERLEAVED, 4, 26.25)],
)
def test_published_times_of_4_stages_and_8_parts(schedule, turns, time):
    """Backward twice as long as forward; ideal 24: arXiv 2104.04473, section 2.2."""
    assert make_table(schedule, 4, 8, turns).time(1, 2) == time


def test_published_peaks():
    """In chunk inputs: (v - 1) p + 2 (p - r - 1) + 1 for interleaved, arXiv 2104.04473."""
    assert make_table(INTERLEAVED, 4, 8, 2).peaks == (11, 9, 7, 5)
    assert max(make_table(INTERLEAVED, 4, 8, 4).peaks) == 19
    assert make_table(GPIPE, 4, 8).peaks == (8, 8, 8, 8)


@given(st.integers(1, 6), st.integers(0, 5))
def test_in_lockstep_1f1b_keeps_twice_as_many_inputs_less_one(stages, more):
    peaks = make_table(ONE_F_ONE_B, stages, 2 * stages - 1 + more).peaks
    assert peaks == tuple(2 * (stages - r) - 1 for r in range(stages))


def test_a_table_with_a_fault_is_seen():
    good = make_table(ONE_F_ONE_B, 2, 3)
    for change in (
        {"backward": (*good.backward[:-1], (None, None))},  # missing
        {"forward": (good.forward[1], good.forward[0], *good.forward[2:])},  # too early
        {"backward": tuple(reversed(good.backward))},
    ):
        with pytest.raises(ValueError, match=r"task|Task"):
            dataclasses.replace(good, **change).check()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("1f2b", 2, 4, 1), "parallel.schedule=1f2b: it is one of gpipe, 1f1b, interleaved"),
        ((GPIPE, 2, 4, 2), "parallel.turns=2: only parallel.schedule=interleaved has turns"),
        ((INTERLEAVED, 4, 6, 2), "train.accumulate=6: interleaved parts go in groups of 4"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(asked, says):
    with pytest.raises(UserError, match=says):
        make_table(*asked)
