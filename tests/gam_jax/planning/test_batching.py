"""Requests on devices that count seconds: what a closed form says, and nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.planning.batching import simulate
from gam_jax.planning.requests import Asked
from gam_jax.serve.executor import Sizes
from sharding.errors import UserError

STEP, TOKEN, COPY = 1.0, 0.01, 0.5


def price(name, tokens):
    """A step takes a second, a read a hundredth a token, all else nothing."""
    kind, _, width = name.partition(" ")
    return {"step": STEP, "read": TOKEN * int(width)}[kind] if kind in ("step", "read") else 0.0


def sizes_of(rows, pages=0):
    page = 4 if pages else 0
    return Sizes(rows, (8, 4, 1), 1, page, pages, 16 if page else 0, 64, 50)


def run(requests, rows=2, pages=0, budget=512, copy=lambda size: COPY):
    return simulate(requests, sizes_of(rows, pages), price, (8.0, 4.0), copy, budget)


def test_one_request_waits_for_its_prompt_and_a_step_and_then_for_steps():
    found = run([Asked(3.0, 21, 5)])
    (told,) = found.told
    assert told.waited == pytest.approx(20 * TOKEN + STEP)
    assert told.between == pytest.approx(STEP)
    assert (told.written, told.reason) == (5, "length")
    assert found.calls["step 1"] == 5
    assert found.busy["step 1"] == 5 * STEP


def test_a_host_that_is_slower_than_its_device_is_what_counts():
    """A token is heard when the next step has begun, the last one when its own is done."""
    requests = [Asked(0.0, 1, 5)]
    slow, fast = (
        simulate(requests, sizes_of(1), price, (8.0, 4.0), lambda size: COPY, host=host).told[0]
        for host in (3.0, 0.1)
    )
    assert slow.last - slow.first == pytest.approx(3 * 3.0 + STEP)
    assert fast.between == pytest.approx(STEP)


def test_equal_requests_at_once_take_their_prompts_and_as_many_steps_as_they_write():
    """Blocks of as many prompts as are read together take what one takes."""
    found = run([Asked(0.0, 9, 7)] * 4, rows=4)
    reads = 4 // sizes_of(4).together(8)
    assert reads == found.calls["read 8"] == 2
    assert found.seconds == pytest.approx(reads * 8 * TOKEN + 7 * STEP)
    assert found.calls["step 1"] == 7


def test_more_than_there_are_rows_for_wait():
    found = run([Asked(0.0, 1, 4)] * 3, rows=1)
    assert found.calls["step 1"] >= 12
    assert found.told[2].waited >= 8 * STEP


@given(
    requests=st.lists(
        st.builds(Asked, st.floats(0, 30), st.integers(1, 40), st.integers(1, 20)), min_size=1
    ),
    rows=st.integers(1, 4),
    pages=st.sampled_from((0, 17, 30)),
)
def test_nothing_is_lost(requests, rows, pages):
    requests.sort(key=lambda asked: asked.arrives)
    found = run(requests, rows, pages)
    assert [told.written for told in found.told] == [asked.writes for asked in requests]
    assert {told.reason for told in found.told} == {"length"}
    assert found.counts.written == sum(asked.writes for asked in requests)
    assert found.counts.read == sum(asked.reads for asked in requests)
    assert found.counts.rows == found.counts.pages == 0
    assert sum(found.busy.values()) <= found.seconds + 1e-9
    for told, asked in zip(found.told, requests, strict=True):
        assert asked.arrives < told.first <= told.last <= found.seconds


def test_texts_that_leave_for_want_of_pages_are_copied_at_the_hosts_speed():
    requests = [Asked(0.0, 20, 40)] * 2
    wide, tight = run(requests, pages=40), run(requests, pages=17)
    assert "to and from the host" not in wide.busy
    assert tight.busy["to and from the host"] >= 2 * COPY
    assert tight.seconds > wide.seconds

    def unknown(size):
        raise UserError("profile made has no figure memory.host.dma")

    with pytest.raises(UserError, match=r"memory\.host\.dma"):
        run(requests, pages=17, copy=unknown)
