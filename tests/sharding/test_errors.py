"""Whatever an error quotes, it is one line that can be printed and read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharding.checkpoint.failures import Damaged
from sharding.errors import BEGINNING, END, UserError, at
from sharding.json_file import BadJson

SIGNS = {
    "a line end": ("a\nb", "a b"),
    "of Windows": ("a \r\n\t b", "a b"),
    "of Unicode": ("a\u2028b\x85c", "a\\u2028b\\x85c"),
    "a terminal's": ("\x1b[2Ja", "\\x1b[2Ja"),
    "that turn a line round": ("a\u202eb", "a\\u202eb"),
    "character 0": ("a\0b", "a\\x00b"),
    "half a pair": ("a\ud800b", "a\\ud800b"),
    "other letters": ("été 日本 🙂", "été 日本 🙂"),
    "two spaces": ("a  b", "a  b"),
}


@pytest.mark.parametrize(("quoted", "shown"), SIGNS.values(), ids=SIGNS)
def test_a_sign_is_shown_as_it_can_be(quoted, shown):
    assert str(UserError(f"x={quoted}: mend it")) == f"x={shown}: mend it"


@given(st.text(st.characters()) | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_text_is_one_line_of_bounded_length(quoted):
    with pytest.raises(UserError) as raised, at("here"):
        raise UserError(f"x={quoted}: mend it")
    message = str(raised.value)
    assert len([message, *message.splitlines()]) == 2
    assert message.encode().isascii() or message.isprintable()
    assert len(message) <= BEGINNING + END + len(" ... ")


@pytest.mark.parametrize(
    "make",
    [
        lambda m: UserError(f"{m}: mend it"),
        lambda m: BadJson(m, "is bad"),
        lambda m: Damaged("x", m),
    ],
    ids=["plain", "JSON", "checkpoint"],
)
def test_a_long_one_keeps_what_is_wrong_and_how_to_mend_it(make):
    message, short = str(make("width=" + "9" * 100_000)), str(make("width=9"))
    assert len(message) < 1000
    begin, _, end = short.partition("9")
    assert message.startswith(f"{begin}999")
    assert message.endswith(f"999{end}")
    assert " ... " in message
