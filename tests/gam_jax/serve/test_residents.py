"""Models on the devices, fewer than are served: which are there, and that no text knows of it."""

from __future__ import annotations

import collections
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.planning.tiers import resident
from gam_jax.serve.drafts import RunDraft
from gam_jax.serve.engine import Engine
from gam_jax.serve.residents import IN, OUT, Residents
from gam_jax.serve.seating import Settings
from sharding.errors import UserError
from tests.gam_jax.serve.fake import FakeExecutor
from tests.gam_jax.serve.test_engine import ask, waited
from tests.gam_jax.serve.test_service import BUDGET, sizes_of

NAMES = "abcd"
rooms = st.integers(1, len(NAMES))


class Served:
    """Engines that do nothing but ask, move and rest; `room` of the models are there at first."""

    def __init__(self, room):
        self.room = room
        self.residents = Residents(room, NAMES[:room])
        self.running = dict.fromkeys(NAMES, 0)
        self.later = dict.fromkeys(NAMES, 0)
        self.loads: list[str] = []
        self.ended: set[str] = set()

    def ask(self, name):
        """Whether the request was taken in."""
        with self.residents.changed:
            enters = self.residents.ask(name)
        (self.running if enters else self.later)[name] += 1
        self.check()
        return enters

    def end(self, name):
        """A request ends."""
        self.running[name] -= 1
        self.turn(name)

    def leave(self, name):
        """Clients whose requests wait leave."""
        self.later[name] = 0
        self.turn(name)

    def stop(self, name):
        """An engine ends, whatever it was asked, and is asked no more."""
        self.ended.add(name)
        self.running[name] = self.later[name] = 0
        with self.residents.changed:
            self.residents.left(name)
        self.check()

    def turn(self, name):
        """What an engine does when it looks; whether that was anything."""
        if name in self.ended:
            return False
        with self.residents.changed:
            if self.later[name] and self.residents.open(name):
                return self.take(name)
            if self.running[name]:
                return False
            self.residents.rest(name, self.later[name] > 0)
            move = self.residents.move(name)
            if move == OUT:
                self.residents.gone(name)
            elif move == IN:
                self.residents.came(name)
                self.loads.append(name)
                self.take(name)
        self.check()
        return bool(move)

    def take(self, name):
        self.running[name] += self.later[name]
        self.later[name] = 0
        return True

    def check(self):
        there = [name for name in NAMES if self.residents.loaded(name)]
        assert len(there) <= self.room
        assert {name for name in NAMES if self.running[name]} <= set(there)
        assert not self.ended & set(there)

    def settle(self):
        """All engines look until none has anything to do; how many times that was."""
        count = 0
        while sum(self.turn(name) for name in NAMES):
            count += 1
            assert count < 20


@settings(max_examples=100)
@given(rooms, st.lists(st.sampled_from(NAMES), max_size=40))
def test_one_request_after_another_hits_as_the_simulator_says(room, names):
    served = Served(room)
    hits = []
    for name in names:
        hits.append(served.ask(name))
        served.settle()
        assert served.running[name] == 1
        served.end(name)
    assert hits == resident([*NAMES[:room], *names], room)[room:]
    assert len(served.loads) == hits.count(False)


kinds = st.sampled_from(["ask", "ask", "ask", "end", "turn", "leave", "stop"])
events = st.tuples(kinds, st.sampled_from(NAMES))


@settings(max_examples=300)
@given(rooms, st.lists(events, max_size=60))
def test_whatever_happens_no_request_is_broken_and_none_waits_for_ever(room, drawn):
    served = Served(room)
    for event, name in drawn:
        if name not in served.ended and (event != "end" or served.running[name]):
            getattr(served, event)(name)
    for _ in range(200):
        served.settle()
        if not any([*served.running.values(), *served.later.values()]):
            return
        for name in [name for name in NAMES if served.running[name]]:
            served.end(name)
    raise AssertionError(f"{served.later} wait for ever")


def test_a_model_that_is_served_no_longer_waits_for_no_place():
    served = Served(1)
    served.ask("a")
    assert not served.ask("b")
    assert not served.ask("a")  # it makes room for b first
    served.stop("a")
    served.settle()
    assert served.running["b"]
    served.end("b")
    served.settle()
    assert served.ask("b")
    assert not served.ask("c")


@given(st.integers(1, 2))
def test_those_that_are_asked_all_the_time_make_room_as_well(room):
    """Models with a request in progress always; another one comes after those have ended once."""
    served = Served(room)
    for name in NAMES[:room]:
        assert served.ask(name)
    assert not served.ask("d")
    for _ in range(3):
        for name in NAMES[:room]:
            served.ask(name)
            if served.running[name]:
                served.end(name)
            served.settle()
        if served.running["d"]:
            return
    raise AssertionError("it never came")


def test_of_models_with_nothing_to_do_the_least_recently_used_goes():
    """Not the least recently used of all, which has a request in progress."""
    served = Served(3)
    for name in "abc":
        served.ask(name)
    for name in "cb":
        served.end(name)
    served.ask("d")
    served.settle()
    assert [served.residents.loaded(name) for name in NAMES] == [True, False, True, True]
    assert served.running["d"]


@pytest.mark.parametrize(("room", "loaded"), [(0, ""), (-1, ""), (1, "ab")])
def test_room_that_makes_no_sense_is_refused(room, loaded):
    with pytest.raises(UserError, match="room"):
        Residents(room, loaded)


PAGED, ENDLESS = sizes_of(2, 1, 4, 40), sizes_of(2)


def engines(room, sizes=PAGED, guesses=False):
    residents = Residents(room, NAMES[:room])
    found = {}
    for name in NAMES:
        executor, other = FakeExecutor(sizes, fingerprint=name), FakeExecutor(PAGED)
        if not residents.loaded(name):
            executor.sleep()
            other.sleep()
        draft = RunDraft(other, sizes) if guesses else None
        found[name] = Engine(executor, Settings(BUDGET), draft, residents=residents, name=name)
        found[name].start()
    return found


@pytest.mark.parametrize("room", [1, 2, 4])
def test_texts_of_many_threads_are_those_of_models_that_stay(room):
    """A double that is called while it is away fails; who leaves while it waits is told so."""
    served = engines(room)
    found: list = []

    def client(seed):
        for k in range(12):
            name = NAMES[(seed * 5 + k * k) % len(NAMES)]
            mine = [ask(served[name], range(1 + k), count=8, seed=seed + i) for i in range(3)]
            served[name].cancel(mine[-1].number)
            waited(mine)
            found.extend(mine)

    threads = [threading.Thread(target=client, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = {name: engine.counts() for name, engine in served.items()}
    for engine in served.values():
        engine.stop(60)
        assert not engine.failure()
    for one in found:
        assert one.end.reason == "cancelled" or one.tokens == one.alone
    ends = collections.Counter(one.end.reason for one in found)
    assert ends["length"] >= 2 * 4 * 12
    assert sum(each.loaded for each in counts.values()) == room
    assert sum(each.misses for each in counts.values()) > 0 or room == len(NAMES)
    total = sum(each.hits + each.misses for each in counts.values())
    assert len(found) - ends["cancelled"] <= total <= len(found) + ends["cancelled"]


def test_what_is_remembered_outlives_an_absence():
    served = engines(1)
    first = ask(served["a"], range(30), count=4)
    waited([first])
    waited([ask(served["b"], range(30), count=4)])
    again = ask(served["a"], [*range(30), *first.tokens, 1], count=4)
    waited([again])
    assert again.end.cached_tokens == 29
    assert again.tokens == again.alone
    assert served["a"].counts().misses == 1
    for engine in served.values():
        engine.stop(0)


def test_a_draft_comes_and_goes_with_its_model():
    served = engines(1, sizes_of(2, 4, 4, 40), guesses=True)
    for name in "abab":
        one = ask(served[name], range(9), count=40)
        waited([one])
        assert one.tokens == one.alone
    assert [served[name].counts().misses for name in "ab"] == [1, 2]
    assert all(served[name].counts().accepted for name in "ab")
    for engine in served.values():
        engine.stop(0)


def test_a_stop_cuts_what_waits_for_a_model():
    served = engines(1, ENDLESS)
    long = ask(served["a"], [1], count=10**6)
    waits = ask(served["b"], [1])
    assert not served["b"].counts().loaded
    served["b"].stop(0)
    assert waits.end.reason == "cancelled"
    served["a"].stop(0)
    waited([long])
    for name in "cd":
        served[name].stop(0)


@pytest.mark.parametrize("fails", [False, True])
def test_an_engine_that_ends_while_its_model_waits_takes_no_place_for_good(fails):
    """One place: a makes room for b, is asked for again, and ends; then b and c take turns."""
    served = engines(1, ENDLESS)
    long = ask(served["a"], [1], count=10**6)
    first = ask(served["b"], [1])
    again = ask(served["a"], [1])
    if fails:
        served["a"]._service._executor.fails_after = 0
        waited([long, again])
        assert "the device is gone" in again.end.error
    else:
        served["a"].stop(0)
    waited([first])
    for name in "cbcb":
        one = ask(served[name], [1])
        waited([one])
        assert one.tokens == one.alone
    for engine in served.values():
        engine.stop(0)
