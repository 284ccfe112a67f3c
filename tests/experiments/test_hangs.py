"""Hanging and slow processes are told from the others, by what each says of itself."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.hangs import Limits, Watch
from gam_jax.training.heartbeat import BEAT_SECONDS, FOLDER, TRAINING, Beat, Heartbeat, read_beats
from gam_jax.training.stragglers import NEEDED, WINDOWS, Pace, Stragglers
from sharding import processes

LIMITS = Limits(step=10, other=100)


def beats(*counts, phase=TRAINING, alive=0):
    """One beat a rank, with these counts."""
    alive = [alive] * len(counts) if isinstance(alive, int) else alive
    return {
        rank: Beat(rank, "node", 100 + rank, 1, phase, count, count, alive[rank])
        for rank, count in enumerate(counts)
    }


def looks(watch, seconds, *states):
    """What is found when the job is looked at once a second, in these states one after another."""
    found = None
    for now in range(seconds):
        state = states[min(now, len(states) - 1)]
        state = {r: Beat(**{**vars(b), "alive": b.alive + now}) for r, b in state.items()}
        found = found or watch.look(state, sorted(state), float(now))
    return found


def test_a_process_that_beats_no_more_is_named_with_host_and_rank():
    watch = Watch(LIMITS)
    for now in range(10):
        assert watch.look(beats(now, now, now, alive=(now, 0, now)), [0, 1, 2], now) is None
    hang = watch.look(beats(11, 11, 11, alive=(11, 0, 11)), [0, 1, 2], 11)
    assert [beat.rank for beat in hang.beats] == [1]
    assert str(hang) == (
        "process 1 (node, pid 101) has given no sign of life for 10 s, training at step 11"
    )


def test_of_processes_that_are_stuck_the_one_that_is_behind_is_accused():
    hang = looks(Watch(LIMITS), 13, beats(4, 4, 4), beats(7, 6, 7))
    assert [beat.rank for beat in hang.beats] == [1]
    assert str(hang).startswith("process 1 (node, pid 101) is stuck for 1")


def test_where_none_is_behind_nobody_is_accused():
    hang = looks(Watch(LIMITS), 12, beats(7, 7))
    assert hang.beats == ()
    assert "none is behind: a collective hangs" in str(hang)


def test_a_lone_process_that_is_stuck_is_accused():
    assert [b.rank for b in looks(Watch(LIMITS), 12, beats(7)).beats] == [0]


def test_phases_that_may_take_long_have_a_longer_limit():
    assert looks(Watch(LIMITS), 90, beats(1, 1, phase="starting")) is None
    assert looks(Watch(LIMITS), 103, beats(1, 1, phase="saving")) is not None


def test_one_that_moves_excuses_those_that_wait():
    states = [beats(now, 0) for now in range(60)]
    assert looks(Watch(LIMITS), 60, *states) is None


def test_who_has_ended_or_never_beat_is_not_judged():
    watch = Watch(LIMITS)
    for now in range(60):
        assert watch.look(beats(5, now, alive=(0, now)), [1], now) is None  # 0 has ended
    assert looks(Watch(LIMITS), 60, {}) is None
    watch = Watch(LIMITS)
    for now in range(60):  # 1 has not begun to beat, and may be why 0 waits
        assert watch.look(beats(5, alive=now), [0, 1], now) is None


def test_when_another_ends_the_one_that_was_frozen_before_is_the_cause():
    watch = Watch(LIMITS)
    for now in range(8):
        watch.look(beats(now, 2, now, alive=(now, min(now, 2), now)), [0, 1, 2], now)
    hang = watch.missed([1, 2], 8)
    assert [beat.rank for beat in hang.beats] == [1]
    assert watch.missed([2], 8) is None


def test_a_limit_of_zero_judges_nobody():
    watch = Watch(Limits(0, 0))
    assert looks(watch, 60, beats(1, 2)) is None
    assert watch.missed([0, 1], 200) is None


def test_a_heartbeat_says_where_the_main_thread_is_while_it_is_open(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setenv(processes.RANK, "3")
    with Heartbeat.from_environment() as heart:
        first = read_beats(tmp_path)[3]
        assert (first.phase, first.step, first.devices) == ("starting", 0, 0)
        heart.has(4)
        heart.beat(17, TRAINING)
        time.sleep(3 * BEAT_SECONDS)
        last = read_beats(tmp_path)[3]
    assert (last.phase, last.step, last.devices, last.count) == (TRAINING, 17, 4, 1)
    assert last.alive > first.alive
    assert list(tmp_path.iterdir()) == []


def test_without_a_launcher_a_heartbeat_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    with Heartbeat.from_environment() as heart:
        heart.beat(1, TRAINING)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_heartbeats_are_left_out(tmp_path):
    (tmp_path / "0.json").write_text('{"rank": 0')
    (tmp_path / "1.json").write_text('{"pulse": 1}')
    assert read_beats(tmp_path) == {}


ranks = st.integers(2, 8)
ratios = st.floats(1.5, 4)


@given(count=ranks, slow=st.integers(0, 7), ratio=ratios, step=st.floats(0.02, 5))
def test_the_slow_one_is_reported_after_three_windows_with_its_step_time(count, slow, ratio, step):
    slow %= count
    stragglers = Stragglers(ratio)
    own = np.full(count, 0.001)
    own[slow] = 1.2 * ratio * (step + 0.001)
    waits = step + own.max() - own  # all steps take as long as that of the slowest
    found = [stragglers.note(own, waits) for _ in range(2 * NEEDED)]
    assert [f is not None for f in found] == 2 * ([False] * (NEEDED - 1) + [True])
    assert found[-1].rank == slow
    assert found[-1].seconds == pytest.approx(own[slow] + step)
    assert found[-1].median == pytest.approx(0.001 + step)


@given(count=ranks, seed=st.integers(0, 10**6))
def test_jitter_accuses_nobody(count, seed):
    """1,000 windows an example: heavy tails, but no rank again and again."""
    draw = np.random.default_rng(seed)
    stragglers = Stragglers(2.0)
    for _ in range(1000):
        own = 0.002 + 0.001 * draw.pareto(1.5, count)
        waits = 0.1 + own.max() - own
        assert stragglers.note(own, waits) is None


def test_two_that_take_turns_in_being_slow_are_not_accused_nor_very_short_steps():
    stragglers = Stragglers(2.0)
    for window in range(4 * WINDOWS):
        slow = window % 3  # each in two windows of five at most
        own = [1.0 if rank == slow else 0.1 for rank in range(3)]
        assert stragglers.note(own, [1.1 - mine for mine in own]) is None
    for _ in range(WINDOWS):
        assert stragglers.note([0.004, 0.0001], [0.0001, 0.004]) is None


def test_a_ratio_of_zero_accuses_nobody():
    stragglers = Stragglers(0)
    assert [stragglers.note([9, 0.1], [0.1, 9]) for _ in range(WINDOWS)] == [None] * WINDOWS


def test_a_pace_tells_own_work_from_waiting_and_leaves_pauses_out():
    pace, start = Pace(), time.perf_counter()
    for _ in range(4):
        pace.own()
        time.sleep(0.02)
        pace.wait()
        time.sleep(0.04)
        pace.pause()
        time.sleep(0.05)
    own, waits = pace.lap()
    spent = (time.perf_counter() - start) / 4
    assert own >= 0.02
    assert waits >= 0.04
    assert own + waits <= spent - 0.05
    assert pace.lap() == (0.0, 0.0)
