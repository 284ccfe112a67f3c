"""The comparison: equal parameters, rows that dominate, and a command that goes on."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.configs.compare import BLOCK_BUDGET, WIDTH, get_config
from experiments.contenders import CHOSEN, CONTENDERS, EVERY, FURTHER
from experiments.papers.compare import OWN_RATE, STUDY, pareto_front
from experiments.study import Setting
from gam_jax.config import flatten, from_dict, to_dict
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


@pytest.mark.parametrize("scale", STUDY.scales)
def test_every_contender_sees_the_same_tokens_and_trains_alike(scale):
    runs = [STUDY.arms[name].experiment(Setting(scale)) for name in EVERY]
    assert len({(run.data, run.train, run.optimizer) for run in runs}) == 1
    assert len({(run.model.width, run.model.depth, run.model.dropout) for run in runs}) == 1


def test_the_arm_with_a_rate_of_its_own_differs_in_that_alone():
    runs = [STUDY.arms[name].experiment(Setting()) for name in ("lstm", OWN_RATE)]
    one, other = (flatten(to_dict(run)) for run in runs)
    differ = {name for name in one | other if one.get(name) != other.get(name)}
    assert differ == {"optimizer.matrix_rate"}


def test_a_table_has_the_contenders_and_further_ones_where_they_are_named():
    assert STUDY.default_arms == tuple(CONTENDERS)
    assert set(STUDY.arms) == {*EVERY, OWN_RATE}


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12))
def test_the_front_is_what_no_other_point_beats(points):
    front = [point for point, on in zip(points, pareto_front(points), strict=True) if on]
    assert front
    for x, y in points:
        assert any(a <= x and b <= y for a, b in front)
    for p in front:
        assert not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("compare", "--mixers=gan"), ["'gan'", "'gam'"]),
        (("compare", "--seeds=one"), ["--seeds", "'one'", "0,1,2"]),
        (("compare", "--seeds=-1"), ["--seeds", "none below 0"]),
        (("compare", "--data=text:nowhere.txt"), ["text:nowhere.txt does not exist"]),
        (("recall", "--mixers=gam,gan"), ["'gan'", "'gam'"]),
        (("recall", "--scale=huge"), ["scale", "huge", "short"]),
        (("recall", "--data=python_stdlib"), ["--data=python_stdlib", "recall", "leave it out"]),
        (("recall", "--data_dir=here"), ["--data_dir", "recall", "leave it out"]),
        (("balance", "--seeds="), ["--seeds=: give whole numbers"]),
        (("balance", "--arms=biass"), ["'biass'", "'bias'"]),
    ],
)
def test_bad_input_is_one_line_and_code_2(args, words, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command(*args)
    assert result.code == 2
    assert result.err.count("\n") <= 2
    assert all(word in result.err for word in words), result.err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_the_command_compares_draws_and_goes_on(workshop, tmp_path, command):
    args = ("--json", "--mixers=gam", "--scale=short", "--steps=4", f"--out={tmp_path}")
    args += (f"--data=text:{workshop.path / 'corpus.txt'}", f"--data_dir={workshop.path / 'data'}")
    first = workshop.run("compare", *args)
    assert first.code == 0, first.err
    result = json.loads(first.out)
    figures = result["arms"]["gam"]["figures"]
    assert set(figures) >= set(STUDY.measures)
    assert all(value > 0 for (value,) in figures.values())
    assert figures["steps"] == [4]
    assert result["baselines"]["bigram"]["loss"] < result["baselines"]["unigram"]["loss"]
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    again = command("compare", *args)  # nothing is left to train
    assert json.loads(again.out)["arms"]["gam"]["figures"] == figures
    told = command("compare", *args[1:])
    assert told.code == 0, told.err
    assert all(word in told.out for word in ("GAM", "bigram", f"{figures['loss'][0]:.4f}"))
