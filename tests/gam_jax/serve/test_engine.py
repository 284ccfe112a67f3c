"""The thread: requests from many threads, a full queue, an end in time, a device that fails."""

from __future__ import annotations

import threading

import pytest

from gam_jax.serve.engine import Engine
from gam_jax.serve.request import Closed, Full
from gam_jax.serve.seating import Settings
from sharding.errors import UserError
from tests.gam_jax.serve.fake import FakeExecutor
from tests.gam_jax.serve.test_service import BUDGET, asked, sizes_of


def waited(ones):
    """Waits until all have ended; the told ends set events."""
    for one in ones:
        assert one.done.wait(60)


def ask(engine, *args, **kwargs):
    """Submits a request; its `done` is set by its end."""
    one = asked(*args, **kwargs)
    one.done, tell = threading.Event(), one.request.tell

    def told(what):
        tell(what)
        if one.end is not None:
            one.done.set()

    object.__setattr__(one.request, "tell", told)
    one.number = engine.submit(one.request)
    return one


def test_requests_of_many_threads_are_each_that_of_the_model_alone():
    engine = Engine(FakeExecutor(sizes_of(3, 1, 4, 40)), Settings(BUDGET))
    engine.start()
    found: list = []

    def client(seed):
        mine = [ask(engine, range(1 + seed + k), count=10, seed=seed) for k in range(5)]
        engine.cancel(mine[-1].number)
        waited(mine)
        found.extend(mine)

    threads = [threading.Thread(target=client, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.stop(60)
    assert len(found) == 20
    for one in found:
        assert one.tokens == one.alone[: len(one.tokens)]
        assert one.end.reason == "cancelled" or one.tokens == one.alone
    counts = engine.counts()
    assert (counts.rows, counts.queued, counts.pages) == (0, 0, 0)
    assert sum(count for _, count in counts.requests) == 20
    assert not engine.failure()
    with pytest.raises(Closed, match="being stopped"):
        ask(engine, [1])


def test_a_queue_has_an_end():
    engine = Engine(FakeExecutor(sizes_of(2)), Settings(BUDGET, queue=3))
    ones = [ask(engine, [1]) for _ in range(5)]
    with pytest.raises(Full) as error:
        ask(engine, [1])
    assert error.value.seconds >= 1
    assert engine.counts().queued == 5
    engine.stop(60)
    waited(ones)
    assert all(one.tokens == one.alone for one in ones)


def test_what_cannot_be_served_is_refused_with_both_numbers():
    engine = Engine(FakeExecutor(sizes_of(2, 1, 4, 9, 30)), Settings(BUDGET))
    for prompt, message in (
        ([], "at least one token"),
        ([40], "40 is no id of the vocabulary of 40"),
        ([-1], "-1 is no id"),
        ([1] * 21, "21 tokens with up to 10 more is 31 tokens, and 30 are the most"),
    ):
        with pytest.raises(UserError, match=message):
            ask(engine, prompt, count=10)
    ask(engine, [1] * 20, count=10)


def test_a_stop_lets_texts_end_or_cuts_them():
    clock = [0.0]
    engine = Engine(FakeExecutor(sizes_of(1)), Settings(BUDGET), clock=lambda: clock[0])
    one = ask(engine, [1], count=20)
    engine.stop(1)
    assert one.tokens == one.alone
    engine = Engine(FakeExecutor(sizes_of(1)), Settings(BUDGET), clock=lambda: clock[0])
    cut = ask(engine, [1], count=20)
    engine.stop(0)
    assert cut.end.reason == "cancelled"
    assert not engine.failure()


@pytest.mark.parametrize("after", [0, 1, 4, 9])
def test_a_device_that_fails_ends_all_and_the_engine_says_so(after):
    executor = FakeExecutor(sizes_of(2))
    executor.fails_after = after
    engine = Engine(executor, Settings(BUDGET))
    ones = [ask(engine, range(9), count=20) for _ in range(4)]
    engine.start()
    waited(ones)
    engine.stop(60)
    assert all(one.end.reason == "error" for one in ones)
    assert all("the device is gone" in one.end.error for one in ones)
    assert "the device is gone" in engine.failure()
    with pytest.raises(Closed, match="the device is gone"):
        ask(engine, [1])
    assert dict(engine.counts().requests) == {"error": 4}


def test_a_client_that_leaves_frees_its_row_and_pages_by_the_next_step():
    executor = FakeExecutor(sizes_of(1, 1, 4, 40))
    engine = Engine(executor, Settings(BUDGET, snapshots=0))
    seen = threading.Event()
    one = ask(engine, [1], count=100)
    tell = one.request.tell

    def leaves(what):
        tell(what)
        if len(one.tokens) == 5:
            engine.cancel(one.number)
        seen.set()

    object.__setattr__(one.request, "tell", leaves)
    engine.start()
    assert seen.wait(60)
    waited([one])
    engine.stop(60)
    assert len(one.tokens) == 5
    assert len(executor.fed) == 6  # the step after was begun before its token was heard
    assert (engine.counts().rows, engine.counts().pages, engine.counts().wasted) == (0, 0, 1)
