"""Every call of one side is run by the other, in order; another ticket is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import socket
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.serve.drafts import NgramDraft
from gam_jax.serve.executor import Draws, Work
from gam_jax.serve.seating import Settings
from gam_jax.serve.tickets import Lost, Named, Ticket, Ticketed, Tickets, follow
from sharding.links import Link
from tests.gam_jax.serve.fake import FakeExecutor
from tests.gam_jax.serve.test_real import LIMIT, device_of, requests, served, told
from tests.gam_jax.serve.test_service import sizes_of


@contextlib.contextmanager
def pair():
    """Both ends of a connection."""
    one, other = socket.socketpair()
    with one, other:
        yield Link(one, 1), Link(other, 0)


class Follower:
    """A thread that follows, and what it raised."""

    def __init__(self, devices, link):
        self.error = None
        self._devices, self._link = devices, link
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        try:
            follow(lambda: self._devices, self._link)
        except Exception as error:
            self.error = error

    def join(self):
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.error


small = st.integers(-(2**31), 2**31 - 1)
arrays = st.lists(small, max_size=9).map(lambda ids: np.asarray(ids, np.int32))
draws = st.builds(
    Draws,
    temperature=st.floats(0, 9),
    top_p=st.floats(0, 1),
    bias=st.lists(st.tuples(st.integers(0, 99), st.floats(width=32))).map(tuple),
)
works = st.builds(
    Work,
    tokens=arrays.map(lambda ids: ids[:, None]),
    known=arrays,
    guesses=arrays,
    pages=arrays.map(lambda ids: ids.reshape(3, -1) if len(ids) % 3 == 0 else ids[None]),
    allowed=st.none() | arrays.map(lambda ids: ids.view(np.uint32)),
)
args = st.one_of(
    small,
    st.none(),
    arrays,
    draws,
    works,
    st.binary(),
    st.lists(small).map(tuple),
    st.builds(Named, st.integers(0, 9)),
)


def plain(value):
    """What can be compared."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, Work):
        return [plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return repr(value)


@given(st.lists(args, max_size=5), st.lists(st.integers(0, 9)))
def test_a_ticket_arrives_as_it_was_sent(sent, free):
    ticket = Ticket(7, 1, "read", tuple(sent), tuple(free))
    found = Ticket.from_bytes(ticket.to_bytes())
    assert dataclasses.replace(found, args=()) == dataclasses.replace(ticket, args=())
    assert list(map(plain, found.args)) == list(map(plain, sent))


def fake():
    return FakeExecutor(sizes_of(3, 4, 4, 3 * LIMIT // 4 + 1, LIMIT))


def both(first, other, wanted):
    """Serves on two devices by tickets, and one of them alone; what was written."""
    settings = Settings(prefill_budget=8, snapshots=2**12)
    alone, _ = served(first, wanted, settings)
    with pair() as (link, back):
        tickets = Tickets([link])
        follower = Follower([other], back)
        tickets.meet([first])
        device = Ticketed(first, tickets)
        for row in range(first.sizes.rows):  # what was served above is not on the other side
            device.load(row, None)
        plain, _ = served(device, wanted, settings)
        guessed, _ = served(device, wanted, settings, draft=NgramDraft(), always=True)
        gc.collect()
        tickets.end()
        assert follower.join() is None
    assert [one.tokens for one in plain] == [one.tokens for one in alone]
    assert [one.tokens for one in guessed] == [one.tokens for one in alone]
    return told(plain), told(alone)


def test_all_that_is_called_is_called_on_both_sides():
    """Rows that come and go, remembered states, some of them as bytes, and guesses."""
    first, other = fake(), fake()
    both(first, other, requests(np.random.default_rng(0), 9))
    assert (first.states, first.last) == (other.states, other.last)
    np.testing.assert_array_equal(first.pages[1:], other.pages[1:])


@pytest.mark.slow
@pytest.mark.parametrize("mixer", ["attention", "gam"])
def test_two_devices_end_in_one_state(mixer):
    first, other = device_of(mixer), device_of.__wrapped__(mixer)
    found, wanted = both(first, other, requests(np.random.default_rng(0), 5))
    assert found == wanted
    for x, y in zip(*(jax.tree.leaves(d._state.seats) for d in (first, other)), strict=True):
        np.testing.assert_array_equal(x, y)


def step(number, call="load", device=0):
    return Ticket(number, device, call, (0, None)).to_bytes()


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([step(0), step(2)], "ticket 2 came where 1 was due"),
        ([step(0), step(0)], "ticket 0 came where 1 was due"),
        ([step(1), step(0)], "ticket 1 came where 0 was due"),
        ([step(0), step(1, device=1)], "ticket 1 asks device 1 for 'load'"),
        ([step(0, call="compile")], "ticket 0 asks device 0 for 'compile'"),
    ],
)
def test_a_ticket_that_is_not_the_next_is_refused(messages, words):
    """Lost ones, doubled ones, ones in another order: said on both sides, and nothing hangs."""
    device = fake()
    with pair() as (link, back):
        tickets = Tickets([link])
        follower = Follower([device], back)
        tickets.meet([device])
        with contextlib.suppress(OSError):  # the other side has refused the one before
            for message in messages:
                link.send(message)
        error = follower.join()
        assert isinstance(error, Lost)
        assert str(error) == words
        while not tickets.lost():
            time.sleep(0.001)
        assert tickets.lost() == f"process 1: {words}"
        with pytest.raises(Lost, match=words):
            tickets.run(0, "load", (0, None), lambda: None)


def test_another_model_is_refused():
    with pair() as (link, back):
        other = fake()
        other.fingerprint = "another"
        follower = Follower([other], back)
        with pytest.raises(Lost, match="process 1: it serves another model"):
            Tickets([link]).meet([fake()])
        assert "another model" in str(follower.join())


def test_one_that_is_gone_is_noticed():
    with pair() as (link, back):
        follower = Follower([], back)
        link.close()
        assert str(follower.join()) == "process 0 of this job is gone"
    with pair() as (link, back):
        tickets = Tickets([link])
        back.close()
        while not tickets.lost():
            time.sleep(0.001)
        assert tickets.lost() == "process 1 of this job is gone"
