"""Free orders of a pipeline in time: closed forms, published figures, tables of PyTorch."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.errors import UserError
from sharding.pipeline import orders
from sharding.pipeline.orders import FORWARD, INPUT, Orders, Work
from sharding.pipeline.simulator import Times, simulate
from sharding.pipeline.tables import GPIPE, INTERLEAVED, ONE_F_ONE_B, make_table

STAGES = st.integers(1, 5)
TIMES = st.builds(Times, *(st.sampled_from((0.5, 1.0, 1.25)) for _ in range(3)))


def worst_idle(made, times):
    return max(simulate(made, times).idle)


@given(STAGES, st.integers(1, 3), TIMES)
def test_times_and_peaks_are_the_closed_forms(p, groups, t):
    """arXiv 2401.10241, table 2: the time lost, and parts kept on the worst stage."""
    m = groups * p + p  # at least 2 p - 1, and a multiple of p
    lost = (p - 1) * (t.forward + t.input + t.weights)
    for made, kept in ((orders.gpipe(p, m), m), (orders.one_f_one_b(p, m), p)):
        assert worst_idle(made, t) == pytest.approx(lost)
        assert max(simulate(made, t).peaks) == kept
    assert simulate(orders.one_f_one_b(p, m), t).peaks == tuple(p - r for r in range(p))
    for v in (2, 3):
        made = orders.interleaved(p, m, v)
        assert worst_idle(made, t) == pytest.approx(lost / v)
        assert max(simulate(made, t).peaks) == (v - 1) * p + 2 * (p - 1) + 1


@given(STAGES, st.integers(0, 6), TIMES)
def test_zero_bubble_orders_lose_what_their_paper_says(p, more, t):
    """arXiv 2401.10241, table 2; a negative sum there is no gain: nothing is lost."""
    m = 2 * p - 1 + more
    for made, weights, kept in ((orders.zb_h1(p, m), 1, p), (orders.zb_h2(p, m), 2, 2 * p - 1)):
        lost = (p - 1) * (t.forward + t.input - weights * t.weights)
        found = simulate(made, t)
        if t.weights <= min(t.forward, t.input):
            assert max(found.idle) == pytest.approx(max(0, lost))
        assert set(found.peaks) == {kept}
        assert found.makespan <= simulate(orders.one_f_one_b(p, m), t).makespan + 1e-9


@given(STAGES, st.integers(0, 6))
def test_zb_v_loses_nothing_where_all_tasks_take_as_long(p, more):
    found = simulate(orders.zb_v(p, 2 * p - 1 + more))
    assert max(found.idle) == pytest.approx(0)
    assert set(found.peaks) == {2 * p}  # halves: the bytes of p parts


def test_published_figures_of_4_stages_and_8_parts():
    """Forward, input and weights 1 each: ideal 24. The test below has those of PyTorch."""
    cases = {
        33: [orders.gpipe(4, 8), orders.one_f_one_b(4, 8)],
        28.5: [orders.interleaved(4, 8, 2)],
        26.25: [orders.interleaved(4, 8, 4)],
        27: [orders.zb_h1(4, 8)],
        25.5: [orders.zb_v(4, 8)],
    }
    for time, made in cases.items():
        assert [simulate(one).makespan for one in made] == [time] * len(made)
    assert simulate(orders.zb_v(4, 8)).spans == (24,) * 4
    assert simulate(orders.zb_h2(4, 8)).spans == (24,) * 4
    assert simulate(orders.interleaved(4, 8, 2)).peaks == (11, 9, 7, 5)


@given(STAGES, st.integers(1, 3), st.integers(1, 3))
def test_tables_in_lockstep_lose_no_time_against_free_orders(p, groups, v):
    m = groups * p
    pairs = [
        (make_table(GPIPE, p, m), orders.gpipe(p, m)),
        (make_table(ONE_F_ONE_B, p, m), orders.one_f_one_b(p, m)),
    ]
    if v > 1 and p > 1:
        pairs.append((make_table(INTERLEAVED, p, m, v), orders.interleaved(p, m, v)))
    for table, made in pairs:
        assert table.time(1, 2) == pytest.approx(simulate(made).makespan)


def test_the_slowest_stage_sets_the_pace():
    """(m - 1) times the slowest stage, and once through all of them."""
    times = Times(stages=(1.0, 2.0, 1.0))
    found = simulate(orders.gpipe(3, 6), times)
    assert found.makespan == pytest.approx(5 * 2 * 3 + 3 * (1 + 2 + 1))
    assert 6 * 2 * 3 <= simulate(orders.one_f_one_b(3, 6), times).makespan <= found.makespan


def test_interleaving_wins_at_few_parts_and_loses_at_many_where_messages_cost():
    times = Times(message=0.1)

    def gain(parts):
        plain, woven = orders.one_f_one_b(4, parts), orders.interleaved(4, parts, 2)
        return simulate(plain, times).makespan - simulate(woven, times).makespan

    gains = [gain(parts) for parts in (4, 8, 16, 32, 64, 128)]
    assert gains[0] > 0 > gains[-1]
    assert gains == sorted(gains, reverse=True)


def test_orders_that_wait_for_each_other_or_miss_a_task_are_refused():
    good = orders.one_f_one_b(2, 2)
    stuck = dataclasses.replace(good, rows=(good.rows[0], tuple(reversed(good.rows[1]))))
    with pytest.raises(ValueError, match="wait for each other"):
        simulate(stuck)
    with pytest.raises(ValueError, match="a task is missing"):
        simulate(Orders(1, 1, ((Work(FORWARD, 0),),)))
    assert simulate(Orders(1, 1, ((Work(FORWARD, 0), Work(INPUT, 0)),))).makespan == 2


def test_parts_that_do_not_suit_an_order_are_refused():
    with pytest.raises(UserError, match="interleaved parts go in groups of 4"):
        orders.interleaved(4, 6, 2)
    with pytest.raises(UserError, match="at least 7 parts: 6"):
        orders.zb_v(4, 6)


TORCH = {
    "ScheduleGPipe": (1, lambda: orders.gpipe(4, 8)),
    "ScheduleInterleaved1F1B": (2, lambda: orders.interleaved(4, 8, 2)),
    "ScheduleInterleavedZeroBubble": (1, lambda: orders.zb_h1(4, 8)),
    "ScheduleZBVZeroBubble": (2, lambda: orders.zb_v(4, 8)),
}


@pytest.mark.parametrize("name", TORCH)
def test_the_orders_of_pytorch_take_as_long_and_keep_as_much(name):
    """Not `Schedule1F1B`: its last rank never takes part 0 forward there."""
    schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    turns, own = TORCH[name]

    class Stage:
        def __init__(self, rank, index):
            self.stage_index, self.group_rank, self.group_size = index, rank, 4
            self.num_stages, self.has_backward, self.is_first, self.is_last = 4 * turns, True, 0, 0

        def __getattr__(self, _):
            return None

    mine = own()
    rows = []
    for rank in range(4):
        stages = [Stage(rank, mine.place(rank, turn)) for turn in range(turns)]
        kind = getattr(schedules, name)
        made = kind(stages[0] if name == "ScheduleGPipe" else stages, 8, loss_fn=lambda *_: None)
        order = (
            made.pipeline_order if hasattr(made, "pipeline_order") else made._get_pipeline_order()
        )
        rows.append(tuple(_work(action, mine) for action in order[rank] if _is_work(action)))
    theirs = simulate(dataclasses.replace(mine, rows=tuple(rows)))
    ours = simulate(mine)
    assert theirs.makespan == pytest.approx(ours.makespan)
    assert theirs.spans == pytest.approx(ours.spans)
    assert theirs.peaks == ours.peaks


KINDS = {
    "FORWARD": FORWARD,
    "BACKWARD_INPUT": INPUT,
    "BACKWARD_WEIGHT": orders.WEIGHTS,
    "FULL_BACKWARD": orders.BACKWARD,
}


def _is_work(action):
    return action is not None and action.computation_type.name in KINDS


def _work(action, like):
    kind = KINDS[action.computation_type.name]
    return Work(kind, action.microbatch_index, like.chunk(action.stage_index)[1])


@given(
    st.integers(2, 6), st.integers(1, 4), st.floats(0.1, 2), st.floats(0.1, 4), st.floats(0, 0.3)
)
def test_with_a_latency_that_no_stage_waits_for_it_takes_the_closed_forms(p, k, f, b, share):
    """GPipe: (n - 1 + p) C + 2 (p - 1) c; 1F1B of n = k p parts: one hop pair less a turn."""
    n, whole = k * p, f + b
    hop = share * whole
    times = Times(forward=f, input=b / 2, weights=b / 2, latency=hop)
    all_forward = (n - 1 + p) * whole + 2 * (p - 1) * hop
    assert simulate(orders.gpipe(p, n), times).makespan == pytest.approx(all_forward)
    turns = k * (p * whole + 2 * (p - 1) * hop) + (p - 1) * whole + 2 * (p - 2) * hop
    assert simulate(orders.one_f_one_b(p, n), times).makespan == pytest.approx(turns)
