"""The comparison: equal parameters, rows that dominate, and a command that goes on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.compare.table import pareto_front, summary
from experiments.configs.compare import BLOCK_BUDGET, WIDTH, experiment, get_config
from experiments.contenders import CHOSEN, CONTENDERS, FURTHER
from gam_jax.config import from_dict
from gam_jax.params import count_params
from gam_jax.training.experiment import Experiment

VOCAB = 256
numbers = st.integers(0, 6).map(float)


def parameters(name):
    """Those that a token meets in a contender's model, built from the record of its run."""
    values = get_config(name).to_dict()
    values["model"]["vocab"] = VOCAB
    return count_params(from_dict(Experiment, values).model.table(), CHOSEN)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_has_the_same_number_of_parameters_within_two_percent(name):
    block = count_params(CONTENDERS[name].sized(WIDTH, BLOCK_BUDGET).table())
    assert 0.98 * BLOCK_BUDGET <= block <= BLOCK_BUDGET
    assert 0.98 * 820_000 <= parameters(name) <= 820_000


@pytest.mark.parametrize("name", FURTHER)
def test_what_streams_add_and_a_token_meets_of_experts_is_counted(name):
    assert 0.98 * 820_000 <= parameters(name) <= 820_000


def test_every_contender_sees_the_same_tokens_and_trains_alike():
    runs = [experiment(contender) for contender in CONTENDERS.values()]
    assert len({(run.data, run.train, run.optimizer) for run in runs}) == 1
    assert len({(run.model.width, run.model.depth, run.model.dropout) for run in runs}) == 1


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12))
def test_the_front_is_what_no_other_point_beats(points):
    front = [point for point, on in zip(points, pareto_front(points), strict=True) if on]
    assert front
    for x, y in points:
        assert any(a <= x and b <= y for a, b in front)
    for p in front:
        assert not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)


def trial(mixer, seed, loss, speed):
    """A row as a trial gives it."""
    sizes = {"parameters": 1, "carry_bytes": 1, "peak_bytes": 1, "bits_per_byte": loss}
    return {
        "mixer": mixer,
        "title": mixer,
        "seed": seed,
        "loss": loss,
        "tokens_per_second": speed,
        **sizes,
    }


def test_rows_are_means_over_seeds_best_first():
    rows = summary([trial("a", 0, 2.0, 10), trial("b", 0, 1.5, 8), trial("a", 1, 3.0, 10)])
    assert [(row["mixer"], row["loss"], row["spread"]) for row in rows] == [
        ("b", 1.5, 0.0),
        ("a", 2.5, 1.0),
    ]
    assert all(row["pareto"] for row in rows)
    assert not summary([trial("a", 0, 2.0, 10), trial("b", 0, 1.5, 11)])[1]["pareto"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("compare", "--mixers=gan"), ["'gan'", "'gam'"]),
        (("compare", "--seeds=one"), ["--seeds", "'one'", "0,1,2"]),
        (("compare", "--seeds=-1"), ["--seeds", "none below 0"]),
        (("compare", "--data=text:nowhere.txt"), ["text:nowhere.txt does not exist"]),
        (("recall", "--mixers=gam,gan"), ["'gan'", "'gam'"]),
        (("recall", "--scale=huge"), ["scale", "huge", "short"]),
    ],
)
def test_bad_input_is_one_line_and_code_2(args, words, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command(f"{args[0]}.__main__", *args[1:])
    assert result.code == 2
    assert result.err.count("\n") <= 2
    assert all(word in result.err for word in words), result.err
    assert not list(tmp_path.iterdir())


def test_the_command_compares_draws_and_goes_on(workshop, tmp_path, command):
    args = ("--json", "--mixers=gam", "--steps=12", f"--out={tmp_path}")
    args += (f"--data=text:{workshop.path / 'corpus.txt'}", f"--data_dir={workshop.path / 'data'}")
    first = workshop.run("compare", *args)
    assert first.code == 0, first.err
    result = json.loads(first.out)
    (row,) = result["rows"]
    assert result["tokens"] == 12 * 12 * 64
    assert 0 < row["loss"] < 6
    assert row["tokens_per_second"] > 0
    assert row["carry_bytes"] > 0 < row["peak_bytes"]
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    again = command("compare.__main__", *args)  # nothing is left to train
    assert json.loads(again.out)["rows"] == result["rows"]
    told = command("compare.__main__", *args[1:])
    assert told.code == 0, told.err
    assert all(word in told.out for word in ("GAM", "bigram", f"{row['loss']:.4f}"))
