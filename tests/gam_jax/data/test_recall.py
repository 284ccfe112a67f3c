"""Recall: what its sequences are, and what a validation of them tells."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.config import from_dict, to_dict
from gam_jax.data import Data, Recall
from sharding.errors import UserError

TASKS = [
    Recall(window=16, pairs=(4,), vocab=16),
    Recall(window=32, pairs=(3,), vocab=64),
    Recall(window=64, pairs=(16,), vocab=64, power=1.0),
]
MIXED = Recall(window=16, pairs=(2, 4), vocab=16, scored=4)
tasks = st.sampled_from(TASKS)
seeds = st.integers(0, 2**32 - 1)


def rows_of(task, seed, rows=4):
    """The first rows of a training stream."""
    found = [task.row(seed, i) for i in range(rows)]
    return {name: np.stack([row[name] for row in found]) for name in found[0]}


@given(tasks, seeds)
def test_every_question_was_written_before_and_its_value_is_the_answer(task, seed):
    batch, (pairs,) = rows_of(task, seed), task.pairs
    for inputs, targets, weights in zip(*batch.values(), strict=True):
        written = dict(inputs[: 2 * pairs].reshape(-1, 2).tolist())
        asked = np.flatnonzero(weights)
        assert asked.min() >= 2 * pairs
        assert {int(inputs[t]): int(targets[t]) for t in asked} == written


@given(tasks, seeds)
def test_each_key_is_written_once_and_asked_once(task, seed):
    batch, (pairs,) = rows_of(task, seed), task.pairs
    assert (batch["weights"].sum(axis=1) == pairs).all()
    for inputs, weights in zip(batch["inputs"], batch["weights"], strict=True):
        keys, values = inputs[: 2 * pairs].reshape(-1, 2).T
        assert len(set(keys)) == len(set(values)) == pairs
        assert (keys >= 1).all()
        assert (keys < task.vocab // 2).all()
        assert (values >= task.vocab // 2).all()
        assert (values < task.vocab).all()
        assert sorted(inputs[weights > 0]) == sorted(keys)


@given(tasks, seeds)
def test_what_does_not_ask_is_blank(task, seed):
    batch, (pairs,) = rows_of(task, seed), task.pairs
    blank = batch["weights"] == 0
    blank[:, : 2 * pairs] = False
    assert not batch["inputs"][blank].any()
    assert not batch["targets"][batch["weights"] == 0].any()


@given(tasks, st.integers(0, 2**32 - 2))
def test_a_row_is_a_function_of_its_seed_and_number(task, seed):
    batch, again, other = (rows_of(task, number) for number in (seed, seed, seed + 1))
    assert all((batch[name] == again[name]).all() for name in batch)
    assert (batch["inputs"] != other["inputs"]).any()
    assert (batch["inputs"][0] != batch["inputs"][1]).any()


def test_a_guess_among_the_values_written_is_right_by_chance():
    task, random = TASKS[0], np.random.default_rng(0)
    batch, (pairs,) = rows_of(task, 0, rows=4096), task.pairs
    values = batch["inputs"][:, 1 : 2 * pairs : 2]
    guesses = random.permuted(values, axis=1)[:, 0]
    asked = batch["weights"] > 0
    hits = (batch["targets"] == guesses[:, None])[asked]
    assert abs(hits.mean() - task.chance()["accuracy_4"]) < 0.01


def test_chance_is_of_each_number_of_pairs_and_of_all_questions():
    assert MIXED.open().baselines()["chance"] == pytest.approx(
        {
            "loss": (2 * math.log(2) + 4 * math.log(4)) / 6,
            "accuracy": 2 / 6,
            "accuracy_2": 1 / 2,
            "accuracy_4": 1 / 4,
        }
    )


def test_the_power_law_asks_early_and_power_one_asks_evenly():
    for power, low, high in ((0.01, 0.0, 0.3), (1.0, 0.45, 0.55)):
        task = Recall(window=128, pairs=(4,), vocab=64, power=power)
        asked = np.nonzero(rows_of(task, 0, rows=512)["weights"])[1]
        place = (asked - 8) / (task.window - 8)
        assert low <= place.mean() <= high


def test_rows_of_a_batch_have_the_numbers_of_pairs_in_turn():
    batch = next(MIXED.open().train_stream(8, seed=0))
    assert batch["weights"].sum(axis=1).tolist() == [2, 4] * 4


@pytest.mark.parametrize("position", [0, 3])
def test_a_stream_goes_on_from_its_position_in_any_number_of_processes(position):
    data = MIXED.open()
    whole = data.train_stream(4, seed=1)
    batches = [next(whole) for _ in range(position + 1)]
    parts = [data.train_stream(4, 1, process, 2, position) for process in (0, 1)]
    together = np.concatenate([next(part)["inputs"] for part in parts])
    assert (together == batches[position]["inputs"]).all()


def test_validation_sequences_are_the_same_each_time_and_none_of_them_is_trained_on():
    data, again = MIXED.open(), MIXED.open()
    trained = {row.tobytes() for row in next(data.train_stream(512, seed=0))["inputs"]}
    for part, pairs in zip(data.parts, MIXED.pairs, strict=True):
        (batch,) = data.validation_stream(part, 4)
        (same,) = again.validation_stream(part, 4)
        assert (batch["inputs"] == same["inputs"]).all()
        assert (batch["weights"].sum(axis=1) == pairs).all()
        if pairs > 2:  # there are few sequences of two pairs of so small a vocabulary
            assert not trained & {row.tobytes() for row in batch["inputs"]}


def test_each_number_of_pairs_is_scored_by_itself():
    sums = {
        "accuracy_2": {"loss": (8.0, 8.0), "accuracy": (6.0, 8.0)},
        "accuracy_4": {"loss": (64.0, 16.0), "accuracy": (2.0, 16.0)},
    }
    assert MIXED.open().scores(sums) == {
        "loss": 3.0,
        "accuracy": 8 / 24,
        "accuracy_2": 0.75,
        "accuracy_4": 0.125,
    }


def test_the_fingerprint_is_of_all_that_decides_the_sequences():
    prints = {
        dataclasses.replace(MIXED, **change).open().fingerprints["sequences"]
        for change in ({}, {"pairs": (2, 3)}, {"vocab": 32}, {"window": 32}, {"power": 0.5})
    }
    assert len(prints) == 5


def test_a_configuration_names_it():
    assert from_dict(Data, to_dict(MIXED)) == MIXED


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"window": 16, "pairs": (5,), "vocab": 16}, ["5 pairs", "16 tokens", "1 to 4"]),
        ({"window": 64, "pairs": (16,), "vocab": 32}, ["16 pairs", "vocabulary of 32", "15"]),
        ({"window": 15, "pairs": (2,), "vocab": 16}, ["even"]),
        ({"pairs": ()}, ["different numbers"]),
        ({"pairs": 7}, ["data.pairs=7", "whole numbers in a tuple"]),
        ({"pairs": (4.5,)}, ["pairs must be a whole number"]),
        ({"pairs": (True,)}, ["whole numbers in a tuple"]),
        ({"pairs": "48"}, ["pairs must be a whole number"]),
        ({"pairs": (2**70,)}, ["pairs must be at most"]),
        ({"pairs": (4, 4)}, ["different numbers"]),
        ({"power": 0.0}, ["power"]),
        ({"scored": 0}, ["scored must be at least 1"]),
    ],
)
def test_a_task_without_room_is_refused(fields, words):
    with pytest.raises(UserError) as refused:
        Recall(**fields)
    assert all(word in str(refused.value) for word in words)
