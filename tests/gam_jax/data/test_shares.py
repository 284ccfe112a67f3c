"""What is held out is a share of the bytes; a document and its copies are never on both sides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.data.builders.shares import (
    BOTH,
    TRAIN,
    VALIDATION,
    Measured,
    check_share,
    shares,
    sides,
)
from sharding.errors import UserError


def measured(documents):
    found = Measured()
    for document in documents:
        found.add(document)
    return found


def split(documents, fraction=0.1):
    return shares(measured(documents), fraction, lambda: documents)


def document(number, size):
    return (b"%d " % number * size)[: size - 1] + b"\n"


DOCUMENTS = st.lists(st.integers(1, 3000), min_size=1, max_size=60).map(
    lambda sizes: [document(number, size + 5) for number, size in enumerate(sizes)]
)


@settings(max_examples=60)
@given(DOCUMENTS, st.floats(0.02, 0.5))
def test_the_share_of_bytes_is_near_what_is_asked_for_whatever_the_sizes(documents, fraction):
    found = sides(measured(documents), fraction)
    sizes = np.array([len(d) for d in documents])
    held = sizes[found == VALIDATION].sum() + fraction * sizes[found == BOTH].sum()
    assert fraction / 2 <= held / sizes.sum() * (1 + 1e-9)
    assert held / sizes.sum() <= 1.5 * fraction * (1 + 1e-9)
    np.testing.assert_array_equal(found == BOTH, sizes > fraction * sizes.sum())


@settings(max_examples=30)
@given(DOCUMENTS, st.data())
def test_copies_stand_on_one_side_and_order_changes_nothing(documents, data):
    twice = data.draw(st.permutations(documents * 2))
    found = dict(zip(twice, sides(measured(twice), 0.1), strict=True))
    for one, side in zip(twice, sides(measured(twice), 0.1), strict=True):
        assert found[one] == side
    assert found == dict(zip(twice[::-1], sides(measured(twice[::-1]), 0.1), strict=True))


def test_nine_notes_beside_a_large_file_are_no_nine_tenths_of_the_text():
    documents = [document(number, 30) for number in range(9)]
    documents.append(b"a line of the large file\n" * 4000)
    found = split(documents)
    assert found.sides[9] == BOTH
    assert found.held / found.bytes == pytest.approx(0.1, abs=0.01)
    parts = [
        [found.part(n, d, s) for n, d in enumerate(documents)] for s in ("train", "validation")
    ]
    assert [a + b for a, b in zip(*parts, strict=True)] == documents
    assert sum(map(len, parts[1])) == found.held


def test_a_document_that_is_alone_gives_its_tail():
    found = split([b"line\n" * 100])
    assert found.sides.tolist() == [BOTH]
    assert found.held == 50


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([b"a\n" + b"b" * 1000], "99.8% .* asks for 10.0%; .* d0 .*ends no line near its cut"),
        ([document(7, 50)] * 20, "0.0% .* asks for 10.0%; .* d0 .*with its copies"),
    ],
)
def test_less_than_half_or_more_than_twice_the_share_names_the_largest_document(documents, words):
    found = split(documents)
    with pytest.raises(UserError, match=words):
        check_share(found, measured(documents), 0.1, lambda number: f"d{number}", "text:x")


def test_no_documents_have_no_sides():
    assert sides(Measured(), 0.1).tolist() == []
    assert TRAIN not in sides(measured([b"x" * 10]), 0.1)
