"""Packed rows: every document whole or cut where it is too long, every token predicted once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gam_jax.data.packing import DocumentRows, best_fit, first_documents, pieces
from gam_jax.data.text import Text
from sharding.errors import UserError

END = 0
lengths_of = st.lists(st.integers(0, 30), min_size=1, max_size=25)


def tokens_of(lengths, separators=True):
    """Documents of unlike numbers above 0, one after another."""
    number, parts = itertools.count(1), []
    for place, length in enumerate(lengths):
        parts += [END] if separators and place else []
        parts += [next(number) for _ in range(length)]
    return np.asarray(parts, np.uint16)


def sequences(lengths, separators=True):
    """What each document is to a model, by the words of `gam_jax.data.packing`."""
    number = itertools.count(1)
    documents = [[next(number) for _ in range(length)] for length in lengths]
    ends = [END] if separators else []
    return [ends + own + ends for own in documents if len(own) > (0 if separators else 1)]


def read(rows):
    """(inputs, targets) of each piece of all rows, by where documents are said to begin."""
    found = []
    for index in range(len(rows)):
        row = rows[index]
        held = row["weights"] > 0
        begins = np.flatnonzero(row["starts"] & held) if "starts" in row else [0]
        for begin, end in itertools.pairwise([*begins, held.sum()]):
            if end > begin:
                piece = slice(begin, end)
                found.append((row["inputs"][piece].tolist(), row["targets"][piece].tolist()))
        assert not row["inputs"][~held].any()
        assert not row["targets"][~held].any()
    return found


@given(
    lengths=lengths_of, window=st.integers(1, 12), separators=st.booleans(), packed=st.booleans()
)
@example([3], 2, True, True)
@example([0, 0], 2, True, True)
def test_each_document_is_there_whole_or_in_pieces_that_go_on(lengths, window, separators, packed):
    tokens = tokens_of(lengths, separators)
    rows = DocumentRows(tokens, np.asarray(lengths), window, END if separators else None, packed)
    want = []
    for own in sequences(lengths, separators):
        for first in range(0, len(own) - 1, window):
            want.append(
                (own[first : first + window][: len(own) - 1 - first], own[first + 1 :][:window])
            )
    assert sorted(read(rows)) == sorted(want)
    assert all(len(row["inputs"]) == window for row in (rows[i] for i in range(len(rows))))


@given(sizes=st.lists(st.integers(1, 16), max_size=60))
def test_rows_are_filled_and_never_too_full(sizes):
    rows = best_fit(np.asarray(sizes, int), 16)
    filled = np.bincount(rows, weights=sizes) if sizes else np.zeros(0)
    assert np.all(filled <= 16)
    assert np.all(filled > 0)
    # No two rows would fit into one: the later one would have been put into the earlier.
    least = np.sort(filled)[:2]
    assert len(least) < 2 or least.sum() > 16


def test_the_fullest_row_that_has_room_is_taken():
    #         8 and 7 begin rows; 3 fits both, and the fuller is taken; 2 then fits the other alone.
    assert best_fit(np.array([8, 3, 7, 2]), 11).tolist() == [0, 0, 1, 1]


def test_an_empty_rest_belongs_to_no_document():
    row = DocumentRows(tokens_of([2]), np.array([2]), 6, END, packed=True)[0]
    assert row["starts"].tolist() == [True, False, False, True, False, False]
    assert row["weights"].tolist() == [1, 1, 1, 0, 0, 0]


def test_rows_of_no_weight_follow_up_to_a_multiple():
    rows = DocumentRows(tokens_of([5, 5]), np.array([5, 5]), 6, END, packed=True, multiple=4)
    assert (rows.filled, len(rows)) == (2, 4)
    assert [rows[i]["weights"].sum() for i in range(4)] == [6, 6, 0, 0]


@given(lengths=lengths_of, tokens=st.integers(0, 60), separators=st.booleans())
def test_the_first_tokens_are_those_of_the_first_documents(lengths, tokens, separators):
    found = first_documents(np.asarray(lengths), tokens, separators)
    whole = tokens_of(lengths, separators)[:tokens]
    cut = tokens_of(found, separators)
    np.testing.assert_array_equal(cut[: len(whole)], whole)
    assert len(cut) <= len(whole) + int(separators)


def test_pieces_stand_where_their_tokens_are():
    assert pieces(np.array([3, 0, 7]), 4, True).tolist() == [[-1, 4], [4, 4], [8, 4]]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"documents": "sorted"}, "choose 'joined' or 'packed' or 'rows'"),
        ({"documents": "packed", "stride": 4}, "data.stride=4 is of windows over joined documents"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        Text(**fields)


def test_the_documents_of_a_corpus_come_back_from_its_rows(tmp_path):
    """Files of unlike lengths, by the lengths that are kept beside the tokens."""
    (tmp_path / "texts").mkdir()
    for i in range(12):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"{i}: " + "abcdefgh " * i)
    name, folder = f"text:{tmp_path / 'texts'}", str(tmp_path / "data")
    found = Text(name=name, dir=folder, window=400, documents="packed").open()
    for split in ("train", "validation"):
        kept = []
        for inputs, targets in read(found.rows(split)):
            assert inputs[0] == targets[-1] == END
            kept.append(found.tokenizer.decode(targets[:-1]))
        assert sorted(kept) == sorted(found.corpus.documents(split))
        assert len(kept) > 1
