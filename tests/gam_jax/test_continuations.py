"""A text ends before its stop text, in whatever pieces it comes, and with its stop ids."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax import decode
from gam_jax.continuations import BY_ID, BY_TEXT, OPEN, Continuation, Until, follow
from gam_jax.data.tokenizer import ByteTokenizer
from sharding.errors import UserError

TEXTS = st.text("abc", max_size=20)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


def before_stop(text, stops):
    """The text before the stop that is whole first, and whether there is one: a sign at a time."""
    for end in range(len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, found))], True
    return text, False


@given(text=TEXTS, stops=STOPS, cuts=st.lists(st.integers(0, 20), max_size=6))
def test_the_text_before_a_stop_is_let_through_however_it_is_cut(text, stops, cuts):
    until, given_out = Until(stops), ""
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    want, met = before_stop(text, stops)
    for start, end in itertools.pairwise(places):
        given_out += until.push(text[start:end])
        assert want.startswith(given_out)
    assert until.met == met
    assert given_out + until.flush() == want


def test_only_what_may_begin_a_stop_is_held_back():
    until = Until(["\n\nUser:"])
    assert until.push("Yes.\n") == "Yes."
    assert until.push("\nNo") == "\n\nNo"


def test_an_empty_stop_is_refused():
    with pytest.raises(UserError, match="a stop text needs at least one character"):
        Until(["a", ""])


BYTES = ByteTokenizer()


def rows(stops=("END",), ends=(0,)):
    return [Continuation(BYTES.stream(), stops, ends) for _ in range(4)]


def pieces(texts, size=2):
    """Ids of texts side by side, a few at a time, with nothing behind the shorter ones."""
    ids = [list(text.encode()) for text in texts]
    longest = max(map(len, ids))
    padded = np.array([row + [decode.ENDED] * (longest - len(row)) for row in ids])
    for start in range(0, longest, size):
        yield padded[:, start : start + size]


def test_rows_end_each_in_its_own_way():
    found = rows()
    grown = ["", "", "", ""]
    for number, text in follow(pieces(["aENDb", "é\0xyz", "abcdefg", "xyz EN"]), found):
        grown[number] += text
    assert grown == ["a", "é", "abcdefg", "xyz EN"] == [row.text for row in found]
    assert [row.ended for row in found] == [BY_TEXT, BY_ID, OPEN, OPEN]
    assert [row.tokens for row in found] == [4, 3, 7, 6]


def test_half_a_character_at_the_end_is_told():
    one = Continuation(BYTES.stream())
    assert one.push("é".encode()[:1]) == ""
    assert one.flush() == "\ufffd"


def test_nothing_is_read_after_all_rows_have_ended():
    def endless():
        yield from pieces(["aEND"] * 4)
        raise AssertionError("read on")

    found = rows()
    list(follow(endless(), found))
    assert {row.text for row in found} == {"a"}
