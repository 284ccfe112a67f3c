"""What history.jsonl tells of the way that a run has come."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.config import from_dict, to_dict
from gam_jax.layers import GAM, Block
from gam_jax.models import LanguageModel
from gam_jax.optimizer import OptimizerConfig
from gam_jax.training import TrainConfig
from gam_jax.training.beginning import _position
from gam_jax.training.experiment import (
    CHANGEABLE,
    FREE_TO_CHANGE,
    Experiment,
    changed_fields,
    check_change,
)
from gam_jax.training.folder import RunFolder
from gam_jax.training.history import Began, batches, note, read_history, skipped_from
from sharding.errors import UserError

MODEL = LanguageModel(Block(GAM(slots=8)), width=8, depth=1, vocab=16)
EXPERIMENT = Experiment(MODEL)


def test_starts_are_read_as_they_were_noted_and_bad_lines_cost_no_other(tmp_path):
    path = tmp_path / "history.jsonl"
    flags = {"XLA_FLAGS": "--a=1"}
    first = Began(0, "", "latest", mesh="data=1", versions={"jax": "0.10.2"}, compiler=flags)
    second = Began(7, position=9, changed={"train.steps": [10, 20]}, skipped=2, aside=["9.aside"])
    note(path, first)
    with path.open("a") as file:
        for bad in ("", "words", "[1]", "{}", '{"step": "1"}', '{"step": 1, "changed": {"a": 1}}'):
            file.write(bad + "\n")
    note(path, second)
    found = read_history(path)
    assert [(b.step, b.changed, b.skipped, list(b.aside)) for b in found] == [
        (0, {}, 0, []),
        (7, {"train.steps": [10, 20]}, 2, ["9.aside"]),
    ]
    assert found[0].told() == []
    assert found[0].compiler == flags
    assert found[1].told() == ["train.steps: 10 -> 20", "2 batches skipped", "put aside: 9.aside"]
    assert [skipped_from(found, step) for step in (0, 7, 8)] == [0, 2, 0]
    assert read_history(tmp_path / "none") == []
    os.mkfifo(tmp_path / "pipe")
    assert read_history(tmp_path / "pipe") == []


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from([4, 8, 12])), max_size=6))
def test_the_sizes_of_batches_are_those_of_the_steps_that_still_count(starts):
    """Beside a list of every step's size, which a start from a step cuts."""
    sizes, size, history = [4] * 0, 8, []
    for step, new in starts:
        step = min(step, len(sizes))
        history.append(Began(step, changed={"train.batch": [size, new]} if new != size else {}))
        size = new
        sizes = sizes[:step] + [size] * 10
    found = batches(history, size)
    assert [step for step, _ in found] == sorted({step for step, _ in found})
    for step, want in enumerate(sizes):
        assert [rows for begin, rows in found if begin <= step][-1] == want


@given(st.integers(0, 10**6), st.integers(1, 512), st.integers(1, 512))
def test_the_position_is_kept_in_rows_and_moves_on_by_less_than_a_batch(position, was, batch):
    extra = {"position": position, "config": {"train": {"batch": was}}}
    found, left_out = _position(extra, batch)
    assert found * batch == position * was + left_out
    assert 0 <= left_out < batch
    assert _position({"position": position}, batch) == (position, 0)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"position": -1},
        {"position": "3"},
        {"position": 3, "config": {"train": {"batch": 0}}},
        {"position": 3, "config": {"train": []}},
    ],
)
def test_a_position_that_is_none_is_refused(extra):
    with pytest.raises((KeyError, ValueError, AttributeError)):
        _position(extra, 8)


def test_every_field_that_may_change_is_one():
    check_change([*CHANGEABLE, *FREE_TO_CHANGE - {"data.dir", "data.workers"}], EXPERIMENT)
    check_change(["model.dropout"], EXPERIMENT)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train.step", "did you mean 'train.steps'"),
        ("", "unknown field"),
        ("train", "unknown field"),
        ("optimizer.beta1", "it decides what the run is"),
        ("model.width", "it decides what the run is"),
        ("train.seed", "it decides what the run is"),
        ("data.name", "it decides what the run is"),
    ],
)
def test_a_field_that_may_not_change_is_refused_by_name(name, words):
    with pytest.raises(UserError, match=f"--change={name}: .*{words}"):
        check_change([name], EXPERIMENT)


def test_a_warm_up_that_is_said_in_another_way_is_the_same():
    old = Experiment(MODEL, optimizer=OptimizerConfig(warmup=100))
    assert not changed_fields(old, EXPERIMENT)
    more = Experiment(MODEL, train=TrainConfig(steps=2000))
    assert changed_fields(EXPERIMENT, more).keys() == {"train.steps"}
    assert changed_fields(old, more).keys() == {"train.steps", "optimizer.warmup"}


def test_steps_of_an_old_configuration_stay_steps_and_its_schedule_a_cosine():
    saved = to_dict(EXPERIMENT)
    saved["optimizer"]["warmup"] = 100
    del saved["optimizer"]["schedule"], saved["optimizer"]["cooldown"]
    saved["train"]["steps"] = 5000
    old = from_dict(Experiment, saved)
    assert (old.optimizer.schedule, old.optimizer.warmup_steps(5000)) == ("cosine", 100)


def test_only_what_is_named_is_written(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(EXPERIMENT, {})
    before = json.loads(folder.config.read_text())
    folder.change({"train.steps": (1000, 70), "model.block.dropout": (None, 0.5)})
    after = json.loads(folder.config.read_text())
    assert after["train"].pop("steps") == 70
    assert after["model"]["block"].pop("dropout") == 0.5
    del before["train"]["steps"]
    assert after == before
    folder.change({"model.block.dropout": (0.5, None)})
    assert "dropout" not in json.loads(folder.config.read_text())["model"]["block"]
