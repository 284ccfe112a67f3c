"""Recall: what its sequences are, and that the command tells who remembers."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.contenders import CONTENDERS
from experiments.recall.task import Recall, draw, mixed
from experiments.recall.trial import SCALES, Trial
from gam_jax.training.progress import Progress
from sharding.errors import UserError

TASKS = [Recall(16, 4, 16), Recall(32, 3, 64), Recall(64, 16, 64, power=1.0)]
tasks = st.sampled_from(TASKS)
seeds = st.integers(0, 2**31 - 1)


def rows_of(task, seed, rows=4):
    """A batch as NumPy arrays."""
    return jax.tree.map(np.asarray, draw(task, jax.random.key(seed), rows))


@given(tasks, seeds)
def test_every_question_was_written_before_and_its_value_is_the_answer(task, seed):
    batch = rows_of(task, seed)
    for inputs, targets, weights in zip(*batch.values(), strict=True):
        written = dict(inputs[: 2 * task.pairs].reshape(-1, 2).tolist())
        asked = np.flatnonzero(weights)
        assert asked.min() >= 2 * task.pairs
        assert {int(inputs[t]): int(targets[t]) for t in asked} == written


@given(tasks, seeds)
def test_each_key_is_written_once_and_asked_once(task, seed):
    batch = rows_of(task, seed)
    assert (batch["weights"].sum(axis=1) == task.pairs).all()
    for inputs, weights in zip(batch["inputs"], batch["weights"], strict=True):
        keys, values = inputs[: 2 * task.pairs].reshape(-1, 2).T
        assert len(set(keys)) == len(set(values)) == task.pairs
        assert (keys >= 1).all()
        assert (keys < task.vocab // 2).all()
        assert (values >= task.vocab // 2).all()
        assert (values < task.vocab).all()
        assert sorted(inputs[weights > 0]) == sorted(keys)


@given(tasks, seeds)
def test_what_does_not_ask_is_blank(task, seed):
    batch = rows_of(task, seed)
    blank = batch["weights"] == 0
    blank[:, : 2 * task.pairs] = False
    assert not batch["inputs"][blank].any()
    assert not batch["targets"][batch["weights"] == 0].any()


@given(tasks, seeds)
def test_a_batch_is_a_function_of_its_key(task, seed):
    batch, again, other = (rows_of(task, number) for number in (seed, seed, seed + 1))
    assert all((batch[name] == again[name]).all() for name in batch)
    assert (batch["inputs"] != other["inputs"]).any()


def test_a_guess_among_the_values_written_is_right_by_chance():
    task = TASKS[0]
    batch, random = rows_of(task, 0, rows=4096), np.random.default_rng(0)
    values = batch["inputs"][:, 1 : 2 * task.pairs : 2]
    guesses = random.permuted(values, axis=1)[:, 0]
    asked = batch["weights"] > 0
    hits = (batch["targets"] == guesses[:, None])[asked]
    assert abs(hits.mean() - task.chance) < 0.01


def test_the_power_law_asks_early_and_power_one_asks_evenly():
    for power, low, high in ((0.01, 0.0, 0.3), (1.0, 0.45, 0.55)):
        task = Recall(128, 4, 64, power)
        asked = np.nonzero(rows_of(task, 0, rows=512)["weights"])[1]
        place = (asked - 2 * task.pairs) / (task.tokens - 2 * task.pairs)
        assert low <= place.mean() <= high


def test_a_mixed_batch_holds_equally_many_rows_of_each_task():
    parts = Recall(16, 2, 16), Recall(16, 4, 16)
    batch = mixed(parts, jax.random.key(0), 8)
    assert np.asarray(batch["weights"]).sum(axis=1).tolist() == [2] * 4 + [4] * 4


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((16, 5, 16), ["5 pairs", "16 tokens", "1 to 4"]),
        ((64, 16, 32), ["16 pairs", "vocabulary of 32", "15"]),
        ((15, 2, 16), ["even"]),
    ],
)
def test_a_task_without_room_is_refused(numbers, words):
    with pytest.raises(UserError) as refused:
        Recall(*numbers)
    assert all(word in str(refused.value) for word in words)


def test_the_command_prints_shares_and_draws_them(workshop, tmp_path):
    args = ("--scale=short", "--mixers=gam", "--steps=20", f"--out={tmp_path}", "--json")
    result = workshop.run("recall", *args)
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)["rows"]
    assert row["steps"] == 20
    assert set(row["accuracy"]) == {"2", "4"}
    assert all(0 <= share <= 1 for share in row["accuracy"].values())
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "recall.json").read_text())["rows"][0] == row


@pytest.mark.slow
def test_a_written_memory_recalls_where_a_bank_of_weights_cannot():
    scale = dataclasses.replace(SCALES["short"], steps=250)
    shares = {
        name: Trial(CONTENDERS[name], scale, seed=0).run(Progress(0, visible=False)).accuracy[4]
        for name in ("written_gam", "gam")
    }
    assert shares["written_gam"] > 0.95
    assert shares["gam"] < 0.7
