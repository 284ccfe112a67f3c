"""Which arrays go to the host's memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sharding.host_memory import chosen, share

sizes = st.lists(st.integers(1, 50), min_size=1, max_size=8)


@given(sizes, st.floats(0.01, 1))
def test_as_few_of_the_largest_go_as_hold_the_share(sizes, wanted):
    marks = chosen(sizes, wanted)
    own = sorted((n for n, goes in zip(sizes, marks, strict=True) if goes), reverse=True)
    assert own == sorted(sizes, reverse=True)[: len(own)]
    assert sum(own) >= wanted * sum(sizes) > sum(own[:-1])


@given(sizes)
def test_none_and_all(sizes):
    assert not any(chosen(sizes, share("")))
    assert all(chosen(sizes, share("all")))
