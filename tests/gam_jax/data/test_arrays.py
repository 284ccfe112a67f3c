"""Arrays and functions given in Python are data like any other: exact, complete, told apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gam_jax.data import Digits, arrays
from gam_jax.data.arrays import Arrays
from sharding.errors import UserError

X = np.arange(30, dtype=np.float32).reshape(10, 3)


def made(seed, index):
    """A row that says whose it is."""
    return {"x": np.asarray([seed % 1000, index], np.float32)}


def taken(data, batches, **where):
    stream = data.train_stream(**where)
    try:
        return [next(stream) for _ in range(batches)]
    finally:
        stream.close()


@settings(max_examples=8)
@given(
    processes=st.sampled_from([1, 2, 4]),
    position=st.integers(0, 7),
    function=st.booleans(),
    seed=st.integers(0, 3),
)
def test_processes_share_the_rows_of_one_and_any_position_goes_on_exactly(
    processes, position, function, seed
):
    data = arrays(made, made, name="made") if function else arrays({"x": X}, {"x": X})
    whole = taken(data, 9, rows=4, seed=seed)
    for process in range(processes):
        where = {"rows": 4, "seed": seed, "process": process, "processes": processes}
        own = taken(data, 2, position=position, **where)
        rows = 4 // processes
        for batch, wanted in zip(own, whole[position:], strict=False):
            for name, array in batch.items():
                part = wanted[name][process * rows : (process + 1) * rows]
                np.testing.assert_array_equal(array, part)


def at_row(number, row):
    """A function whose row of that number is another, and whose others are as `made` makes them."""
    return lambda seed, index: row if index == number else made(seed, index)


@pytest.mark.parametrize(
    "row",
    [
        {"x": np.zeros(3, np.float32)},
        {"x": np.zeros(2, np.int32)},
        {"y": np.zeros(2, np.float32)},
        {"x": np.zeros(2, np.float32), "y": np.zeros(2, np.float32)},
        {"x": np.zeros(2, np.float32), "weights": np.float32(-1)},
        {"x": np.zeros(2, np.float32), "weights": np.float32("nan")},
    ],
)
def test_every_row_that_a_function_makes_is_held_against_the_first(row):
    data = arrays(at_row(5, row), made, name="made")
    with pytest.raises(UserError, match="training row 5"):
        taken(data, 3, rows=4, seed=0)
    with pytest.raises(UserError, match="validation row 5"):
        arrays(made, at_row(5, row), name="made", rows=8)


def test_an_epoch_of_arrays_has_each_row_once():
    (batch,) = taken(arrays({"x": X}, {"x": X}), 1, rows=10, seed=0)
    np.testing.assert_array_equal(np.sort(batch["x"][:, 0]), X[:, 0])
    assert np.any(batch["x"] != X)


def test_a_function_is_asked_for_rows_in_order_with_the_run_s_seed():
    (batch,) = taken(arrays(made, made, name="made"), 1, rows=4, seed=7)
    np.testing.assert_array_equal(batch["x"], [[7, 0], [7, 1], [7, 2], [7, 3]])


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_validation_has_each_row_once_and_fills_up_with_weight_0(rows):
    data = arrays({"x": X}, {"x": X})
    batches = list(data.validation_stream("", rows))
    assert {len(batch["x"]) for batch in batches} == {rows}
    weights = np.concatenate([batch["weights"] for batch in batches])
    seen = np.concatenate([batch["x"] for batch in batches])
    np.testing.assert_array_equal(seen[weights > 0], X)
    assert weights.sum() == len(X)


def test_weights_that_are_given_stay():
    weights = np.linspace(0, 1, 10, dtype=np.float32)
    (batch,) = taken(arrays({"x": X, "weights": weights}, {"x": X}), 1, rows=10, seed=0)
    np.testing.assert_allclose(np.sort(batch["weights"]), weights)


def test_other_values_names_or_types_are_another_fingerprint():
    def fingerprints(own, **options):
        return arrays(own, own, **options).fingerprints["train rows"]

    changed = X.copy()
    changed[3, 1] += 1
    kinds = [
        {"x": X},
        {"x": changed},
        {"y": X},
        {"x": X.astype(np.float64)},
        {"x": X.reshape(10, 3, 1)},
    ]
    assert len({fingerprints(own) for own in kinds}) == len(kinds)
    assert fingerprints({"x": X}) == fingerprints({"x": X.copy()})
    assert fingerprints(made, name="a") != fingerprints(made, name="b")


@pytest.mark.parametrize(
    ("own", "held", "words"),
    [
        (made, {"x": X}, "needs name="),
        ({"x": X, "y": X[:4]}, {"x": X}, "train has arrays of unlike lengths"),
        ({"x": X}, {"x": X[:0]}, "validation has no rows"),
        ({}, {"x": X}, "train has no rows"),
        ({"x": X}, {"z": X}, "give both the same names"),
        ({"x": X}, {"x": X.astype(np.float64)}, "float32 .3.*float64 .3"),
        ({"x": X, "weights": np.full(10, -1.0)}, {"x": X}, "weights below 0"),
        ({"x": X, "weights": np.full(10, np.nan)}, {"x": X}, "no finite numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(own, held, words):
    with pytest.raises(UserError, match=words):
        arrays(own, held)


def test_a_name_alone_cannot_bring_arrays_back():
    with pytest.raises(UserError, match="was given in Python"):
        Arrays("arrays:mine").open()


def test_digits_are_split_by_a_seed_and_beaten_by_a_line():
    pytest.importorskip("sklearn")
    data, other = Digits().open(), Digits(split_seed=1).open()
    assert data.sizes == {"side": 8, "classes": 10}
    assert data.described() == "1,437 training and 360 validation images"
    assert data.fingerprints != other.fingerprints
    assert 0.95 < data.baselines()["linear"]["accuracy"] < 0.98
