"""Every plan is one way to share devices, and simulated requests lose nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.papers.apex import beside, released
from experiments.papers.apex.loop import Request, linear, serve
from experiments.papers.apex.plans import SMALL, held, plans
from sharding.errors import UserError

requests = st.lists(
    st.builds(Request, st.floats(0, 2), st.integers(1, 40), st.integers(1, 12)),
    min_size=1,
    max_size=12,
).map(lambda found: sorted(found, key=lambda request: request.arrives))


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_no_plan_is_another_one_in_disguise(devices):
    """More replicas of both sub-blocks are more replicas of the model."""
    found = list(plans(SMALL, devices, float("inf")))
    assert len(set(found)) == len(found)
    one = [
        (plan.replicas * plan.attention, plan.replicas * plan.ffn, plan.stages) for plan in found
    ]
    assert len(set(one)) == len(one)
    assert held(SMALL, found[0], devices) > 0


@settings(deadline=None, max_examples=60)
@given(requests, st.integers(60, 300))
def test_tokens_cache_and_ends_are_conserved(made, room):
    found = serve(made, room, linear)
    assert found.written == sum(request.writes for request in made)
    assert found.most <= room
    assert sorted(found.ends) == list(range(len(made)))
    for number, request in enumerate(made):
        assert found.ends[number] > request.arrives


def test_one_request_alone_takes_its_prompt_and_its_tokens():
    found = serve([Request(1.0, 30, 3)], 100, linear)
    expected = 1.0 + linear([30], []) + linear([], [31]) + linear([], [32])
    assert found.seconds == pytest.approx(expected)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0.0, 5, 0), "reads=5, writes=0: give at least 0 and 1"),
        ((0.0, -1, 3), "reads=-1, writes=3: give at least 0 and 1"),
        ((float("nan"), 5, 3), "arrives=nan"),
        ((float("inf"), 5, 3), "arrives=inf"),
    ],
)
def test_a_request_that_never_ends_is_refused(numbers, message):
    with pytest.raises(UserError, match=message):
        Request(*numbers)


def test_what_would_be_served_for_ever_is_refused():
    fits, later = Request(0.0, 30, 10), Request(1.0, 3, 1)
    assert serve([fits, later], 40, linear).written == 11
    with pytest.raises(UserError, match=r"request 1 reads 30 and writes 10 .*room=39 is too small"):
        serve([Request(0.0, 3, 1), fits], 39, linear)
    with pytest.raises(UserError, match="request 1 arrives before"):
        serve([later, fits], 40, linear)
    with pytest.raises(UserError, match="batch=-1"):
        serve([fits], 40, linear, -1)


def test_the_released_engine_prints_what_the_loop_finds_on_its_tables():
    """To its last digit: requests and tokens of an iteration, times of tokens, of requests."""
    for gap, printed in (
        (released.GAP, (8.7, 41.9, 322.618, 251.838)),
        (0.0, (20.6, 99.7, 3663.369, 223.053)),
    ):
        found = released.beside(released.SAME, gap)
        own = [found[name] for name in ("requests", "tokens", "first", "later")]
        assert [round(x, digits) for x, digits in zip(own, (1, 1, 3, 3), strict=True)] == [*printed]


@settings(deadline=None, max_examples=30)
@given(requests)
def test_the_scheduler_that_serves_has_the_loop_s_steps_and_ends(made):
    """Of requests that are all there at first."""
    found = beside.compared([Request(0.0, one.reads, one.writes) for one in made])
    assert found["steps"] == found["order"] == 0
    assert found["apart"] < 1e-9


@settings(deadline=None, max_examples=30)
@given(requests)
def test_of_requests_that_come_later_none_is_begun_out_of_turn(made):
    found = beside.compared(made)
    assert found["order"] == 0
    assert found["apart"] < 4
