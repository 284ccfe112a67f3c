"""Features of rows, beside a list for each row."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.serve.features import Features
from tests.arrays import put

SIZE, WIDTH, ROWS = 6, 2, 2
FED = jax.jit(Features.fed)
BEFORE = jax.jit(Features.before, static_argnums=2)


def feature(row, place, version):
    return [row * 1000 + place, version]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=ROWS, max_size=ROWS),
        max_size=12,
    ),
    st.integers(0, ROWS - 1),
    st.integers(0, 12),
)
def test_they_are_those_of_the_last_tokens_that_stood(steps, forgets, when):
    """A block that stands whole is read; of another, what stood is fed again in the next."""
    features = Features.none(ROWS, SIZE, WIDTH)
    known: list[dict] = [{} for _ in range(ROWS)]
    read = [0] * ROWS
    for number, step in enumerate(steps):
        if number == when:
            features, known[forgets] = features.forget(forgets), {}
        block = np.zeros((ROWS, 4, WIDTH), np.float32)
        right = np.zeros(ROWS, np.int32)
        places = np.asarray(read, np.int32)
        for row, (stood, whole) in enumerate(step):
            right[row] = stood
            for i in range(4):
                block[row, i] = feature(row, read[row] + i, number)
            for i in range(stood):
                known[row][read[row] + i] = feature(row, read[row] + i, number)
            for place in [p for p in known[row] if stood and p >= read[row] + stood]:
                del known[row][place]
            end = max(known[row], default=-1) + 1
            known[row] = {p: own for p, own in known[row].items() if p >= end - SIZE}
            read[row] += stood if whole else 0
        features = FED(features, put(block), put(places), put(right))
    ends = [max(own, default=-1) + 1 for own in known]
    length = np.asarray(ends, np.int32) + 1
    found, there = (np.asarray(x) for x in BEFORE(features, put(length), SIZE))
    for row in range(ROWS):
        for i in range(SIZE):
            place = length[row] - SIZE - 1 + i
            own = known[row].get(place)
            if there[row, i] and own is not None:
                assert found[row, i].tolist() == own
            elif there[row, i]:
                assert i == SIZE - 1
                assert not found[row, i].any()
            else:
                assert own is None or place < ends[row] - SIZE or not steps
