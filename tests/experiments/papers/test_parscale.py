"""Parallel streams: what they cost by the paper's model and here; runs, laws, second stages."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from experiments.papers.parscale import law
from experiments.papers.parscale.accelerator_model import GIB, Transformer, compared, inference
from experiments.papers.parscale.figure import draw
from experiments.papers.parscale.study import ADDED, STUDY, Options, study_of
from experiments.papers.parscale.written import READ, Writer
from experiments.study import Setting
from experiments.study.claim import REVERSED, Values
from experiments.study.found import ArmFound, Found
from experiments.study.run import experiment_of
from gam_jax.config import flatten, to_dict
from gam_jax.decode import carry_bytes, prefill

OFFICIAL = {
    (1, 1, 128, 256): (3.408, 0.510),
    (1, 8, 128, 256): (3.731, 0.551),
    (8, 1, 128, 256): (3.536, 0.555),
    (8, 8, 128, 256): (4.507, 0.910),
}
"""(streams, batch, read, written) -> GiB and seconds that the official script prints at 1.6 B."""


@pytest.mark.parametrize(("case", "printed"), OFFICIAL.items(), ids=str)
def test_the_model_of_cost_prints_what_the_official_script_prints(case, printed):
    found = inference(Transformer(), *case)
    assert (round(found.memory / GIB, 3), round(found.seconds, 3)) == printed


def test_at_batch_1_streams_are_cheaper_than_as_good_a_loss_by_parameters():
    """The paper says 22 times less memory and 6 times less time; its script, 18 and 5."""
    eight = compared(8, batch=1)
    assert eight["saved_memory"] == pytest.approx(18, abs=0.6)
    assert eight["saved_seconds"] == pytest.approx(5.5, abs=0.2)


def test_at_batch_8_they_save_memory_and_take_longer():
    eight = compared(8, batch=8)
    assert eight["saved_memory"] == pytest.approx(2.85, abs=0.1)
    assert eight["saved_seconds"] == pytest.approx(0.75, abs=0.05)


def test_what_the_text_says_of_the_cost_is_not_what_the_script_prints():
    arm = STUDY.arms["a100-b1-p8"].numbers(Setting(), 0)
    words = {
        claim.measure: claim.judge({"a100-b1-p8": Values((arm[claim.measure],), "exact")}).word
        for claim in STUDY.claims
        if claim.source == "the paper's abstract"
    }
    assert words == {"saved_memory": REVERSED, "saved_seconds": REVERSED}


@pytest.mark.slow
def test_what_is_held_grows_with_streams():
    one, two = (Writer(streams, batch=1, width=32) for streams in (1, 2))
    found = one.numbers(), two.numbers()
    assert found[1]["carry_bytes"] > 2 * found[0]["carry_bytes"]  # the prefix, too
    assert all(each["bytes"] > each["carry_bytes"] for each in found)
    two.write()
    params = two.model.init_params(jax.random.key(0))
    _, carry = prefill(two.model, params, np.zeros((1, READ), np.int32))
    assert found[1]["carry_bytes"] == carry_bytes(carry)


def test_runs_that_follow_the_law_tell_its_numbers(tmp_path):
    numbers = {"E": 1.2, "A": 3e4, "alpha": 0.4, "k": 0.35}
    study = study_of(Options(widths=(10, 20, 40, 80), streams=(1, 2, 4, 8)))
    arms = {}
    for n in (10, 20, 40, 80):
        for streams in (1, 2, 4, 8):
            loss = 1.2 + (3e4 / (1000 * n * (0.35 * math.log(streams) + 1))) ** 0.4
            figures = {"loss": (loss - 0.01, loss + 0.01), "counted": (1e3 * n, 1e3 * n)}
            arms[f"w{n}-p{streams}"] = ArmFound(figures, seeds=(0, 1))
    found = Found("cpu", arms)
    runs = law.runs_of(found)
    assert law.enough(runs, found)
    best = law.fits(runs)[0]
    assert best.law.name == "parallel"
    assert best.values == pytest.approx(numbers, rel=0.01)
    draw(study, found, tmp_path / "law.png")
    assert (tmp_path / "law.png").stat().st_size > 10_000
    few = Found("cpu", {name: arm for name, arm in arms.items() if name.startswith("w10-")})
    assert not law.enough(law.runs_of(few), few)


def changes(one, other):
    """Fields that differ between the experiments of two arms."""
    before, after = (
        flatten(to_dict(experiment_of(STUDY.arms[name], Setting()))) for name in (one, other)
    )
    return {field for field in before | after if before.get(field) != after.get(field)}


def test_runs_of_a_law_differ_in_streams_alone():
    assert changes("w48-p1", "w48-p4") == {"model.streams"}


def test_a_frozen_second_stage_trains_what_streams_add():
    assert changes("w48-all-p4", "w48-frozen-p4") == {
        "optimizer.learning_rate",
        "optimizer.only",
    }
    assert experiment_of(STUDY.arms["w48-frozen-p4"], Setting()).optimizer.only == ADDED
    assert "w48-frozen-p1" not in STUDY.arms  # it would be the first stage itself


def test_runs_of_another_mixer_have_names_of_their_own():
    other = study_of(Options(mixer="lstm"))
    trained = {name for name, arm in other.arms.items() if arm.experiment is not None}
    assert not trained & STUDY.arms.keys()
    assert other.arms["lstm-w48-all-p2"].begins.arms == ("lstm-w48-p1",)


@pytest.fixture(scope="module")
def runs(workshop):
    """The two trainings of `law`, tiny, and where they are."""
    out = workshop.path / "parscale"
    args = (
        f"--data=text:{workshop.path / 'corpus.txt'}",
        f"--data_dir={workshop.path / 'data'}",
        f"--out={out}",
        "--sizes=16",
        "--seeds=0",
        "--steps=4",
        "--second=2",
    )
    result = workshop.run("parscale", "law", *args, "--streams=1,2", "--json")
    assert result.code == 0, result.err
    return args, out, json.loads(result.out)["arms"]


@pytest.mark.slow
def test_runs_are_kept(runs, command):
    args, out, found = runs
    one, two = (found[name]["figures"] for name in ("w16-p1", "w16-p2"))
    assert one["counted"] < two["counted"]
    assert one["steps"] == two["steps"] == [4]
    assert two["gain"] == pytest.approx([one["loss"][0] - two["loss"][0]])
    assert "gain" not in one
    assert (out / "law.png").stat().st_size > 10_000
    again = command("parscale", "law", *args, "--streams=1,2", "--json")
    assert json.loads(again.out)["arms"]["w16-p2"]["figures"] == two


@pytest.mark.slow
def test_a_second_stage_begins_where_the_first_has_ended(runs, command):
    args, out, found = runs
    result = command("parscale", "stages", *args, "--streams=2", "--stage=frozen", "--json")
    assert result.code == 0, result.err
    arms = json.loads(result.out)["arms"]
    assert list(arms) == ["w16-p1", "w16-frozen-p2"]
    assert arms["w16-p1"]["figures"] == found["w16-p1"]["figures"]
    own, backbone = arms["w16-frozen-p2"]["figures"], arms["w16-p1"]["figures"]
    assert own["steps"] == [2]
    assert own["gain"] == pytest.approx([backbone["loss"][0] - own["loss"][0]])
    taken = json.loads((out / "cpu" / "w16-frozen-p2-0" / "init.json").read_text())
    assert taken["missing"]
    assert all(name.split("/")[0] in ("starts", "aggregator") for name in taken["missing"])


def test_every_claim_of_the_options_is_about_arms_that_there_are():
    narrow = study_of(dataclasses.replace(Options(), widths=(12,), stages=("all",)))
    assert {name for claim in narrow.claims for name in claim.arms} <= narrow.arms.keys()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("law", "--mixer=gem"), "did you mean 'gam'"),
        (("law", "--mixer=gam,lstm"), "give one of"),
        (("law", "--streams=0"), "--streams: give at least one, none below 1"),
        (("law", "--sizes=small"), "--sizes: invalid literal"),
        (("buy",), "say one of law, stages, cost"),
    ],
)
def test_bad_input_is_refused_in_one_line(args, message, command):
    result = command("parscale", *args)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err
