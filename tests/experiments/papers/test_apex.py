"""Every plan is one way to share devices, and simulated requests lose nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.papers.apex import SMALL, Request, held, linear, plans, serve

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
    expected = 1.0 + linear(30, []) + linear(0, [31]) + linear(0, [32])
    assert found.seconds == pytest.approx(expected)
