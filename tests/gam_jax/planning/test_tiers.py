"""What is placed is whole, within its memory, and placed whenever it fits."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gam_jax.planning.tiers import (
    Host,
    Item,
    Speeds,
    offloaded,
    place,
    resident,
    step_seconds,
    striped,
)
from sharding.errors import UserError

sizes = st.lists(st.integers(0, 100), min_size=1, max_size=8)
rooms = st.integers(0, 300)


def named(sizes, levels=False):
    return [Item(str(i), size, 1 + i // 4 * levels) for i, size in enumerate(sizes)]


@given(sizes, rooms, rooms, st.integers(1, 4))
def test_all_is_placed_exactly_where_all_fits_together(sizes, near, far, cards):
    items, host = named(sizes), Host(near, far, cards)
    if sum(sizes) > near + far:
        with pytest.raises(UserError, match="do not fit"):
            place(items, host)
        return
    placed = place(items, host)
    for item in items:
        assert placed[item.name].near + placed[item.name].far == pytest.approx(item.size)
        assert min(placed[item.name].near, placed[item.name].far) >= 0
    assert sum(own.near for own in placed.values()) <= near + 1e-9
    assert sum(own.far for own in placed.values()) <= far + 1e-9


@given(sizes, rooms, rooms, st.integers(1, 4), st.floats(1, 8))
def test_placing_by_use_is_never_slower_than_striping_everything(sizes, near, far, cards, slower):
    """Where a card is copied from as fast as the host's memory, and striping fits as well."""
    items, host = named(sizes, levels=True), Host(near, far, cards)
    whole = sum(sizes)
    assume(whole <= near + far)
    assume(whole / (1 + cards) <= near and whole * cards / (1 + cards) <= far)
    speeds = Speeds(1.0, 1 / slower, 2.0, 2.0)
    apart, alike = (step_seconds(items, f(items, host), speeds, cards) for f in (place, striped))
    assert apart <= alike * (1 + 1e-9)


def test_two_cards_are_copied_from_twice_as_fast_until_the_link_binds():
    items = [Item("activations", 60, 3)]
    seconds = [
        step_seconds(items, place(items, Host(0, 60, n)), Speeds(1, 1, 25, 10), n)
        for n in (1, 2, 3)
    ]
    assert seconds == pytest.approx([6, 3, 60 / 25])


@given(st.integers(1, 10**10), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_what_is_offloaded_has_the_bytes_of_the_formula(params, batch, tokens, layers):
    items = offloaded(params, batch, tokens, 8, layers)
    assert sum(i.size for i in items) == 20 * params + 2 * batch * tokens * 8 * layers
    assert [item.level for item in items] == [1, 1, 1, 1, 2, 3, 4]


def placement(params, tokens=32_768):
    """The run-book's machine and its smaller model: percent near of each item."""
    gib = 2**30
    placed = place(offloaded(params, 1, tokens, 3584, 28), Host(100 * gib, 256 * gib))
    return [round(100 * own.near / (own.near + own.far)) for own in placed.values()]


def test_the_run_book_is_placed_as_it_says():
    for params in (7.67e9, 8.94e9):
        near = placement(params)
        assert near[:3] == [100, 100, 100]
        assert 0 <= near[3] <= 50
        assert near[4:] == [0, 0, 0]
    assert placement(7.0e9, 1024)[5] == 100  # a remainder takes a later small item


def test_the_models_used_last_stay():
    requests = list("abacbadda")
    assert resident(requests, 2) == [bool(int(sign)) for sign in "001000011"]
    assert resident(requests, 4) == [bool(int(sign)) for sign in "001011011"]
    assert not any(resident("abcabcabc", 2))


@given(st.lists(st.sampled_from("abcde"), max_size=30), st.integers(1, 5))
def test_more_room_never_loses_a_hit(requests, room):
    """Least recently used keeps what a smaller room keeps."""
    smaller, larger = resident(requests, room), resident(requests, room + 1)
    assert all(more >= less for less, more in zip(smaller, larger, strict=True))
    assert sum(resident(requests, 5)) == len(requests) - len(set(requests))
