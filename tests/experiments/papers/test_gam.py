"""The GAM paper's tables: sizes as published, one change at a time, claims, the commands."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from experiments.papers.gam import published
from experiments.papers.gam.blocks import ScoresAtOnce, blocks
from experiments.papers.gam.protocol import EPOCHS, SCALES
from experiments.papers.gam.study import LENGTHS, STUDY, study_of
from experiments.study import Setting
from experiments.study.claim import HOLDS, UNCLEAR, Summary, Values
from experiments.study.found import ArmFound, Found
from experiments.study.run import experiment_of
from experiments.study.sheets import sheet
from gam_jax.config import flatten, to_dict
from gam_jax.params import count_params, init_params
from tests.arrays import compiled
from tests.examples import apply
from tests.oracle import softmax

COUNTS = {
    "gam": 22_599_680,
    "transformer": 24_166_400,
    "mamba": 20_504_576,
    "sum": 19_447_808,
    "global": 19_435_520,
    "local": 17_874_944,
}


def experiment(name, scale="paper"):
    """The experiment of an arm."""
    return experiment_of(STUDY.arms[name], Setting(scale))


def parameters(name):
    """Of an arm's model at the published size."""
    return count_params(dataclasses.replace(experiment(name).model, vocab=10_000).table())


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_models_have_the_published_number_of_parameters(name, count):
    assert parameters(name) == count


def test_the_recipe_has_the_size_of_the_published_model():
    assert parameters("recipe") == parameters("gam")


@pytest.mark.parametrize("name", published.MILLIONS)
def test_claims_of_sizes_hold(name):
    arm = f"size_{name}"
    found = STUDY.arms[arm].numbers(Setting("short"), 0)
    (claim,) = (claim for claim in STUDY.claims if claim.arms == (arm,))
    assert claim.judge({arm: Values((found["parameters"],), "exact")}).word == HOLDS


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("positions", {"model.init"}),
        ("rate", {"optimizer.learning_rate"}),
        ("batch", {"train.batch"}),
        ("decay", {"optimizer.decay_all"}),
        ("dropout", {"model.dropout"}),
        ("recipe_old_positions", {"optimizer.learning_rate", "optimizer.decay_all", "train.batch"}),
        ("gam_stories", {"data.name", "data.train_rows", "data.validation_rows"}),
    ],
)
def test_an_arm_changes_what_it_says_and_nothing_else(name, changed):
    before, after = (flatten(to_dict(experiment(arm))) for arm in ("gam", name))
    assert {field for field in before | after if before.get(field) != after.get(field)} == changed


@pytest.mark.parametrize("scale", ["short", "cpu"])
def test_the_small_sizes_differ_from_the_published_in_sizes_and_text_alone(scale):
    small, large = (flatten(to_dict(experiment("gam", size))) for size in (scale, "paper"))
    differ = {name for name in small | large if small.get(name) != large.get(name)}
    assert differ == {
        "model.width",
        "model.depth",
        "model.unroll",
        "model.context",
        "model.block.mixer.slots",
        "data.name",
        "data.tokenizer",
        "data.window",
        "data.stride",
        "train.batch",
        "train.tokens",
        "train.validation_tokens",
    }


def test_the_papers_own_two_runs_do_not_tell_its_first_ablation_from_noise():
    full = np.log(published.ABLATION_PERPLEXITY["gam"]), published.LOSS["gam"]
    alone = np.log(published.ABLATION_PERPLEXITY["global"])
    assert np.std(full, ddof=1) > alone - full[0]


def test_scores_at_once_are_attention_by_its_formula():
    layer = ScoresAtOnce(width=8, heads=2)
    params = compiled(functools.partial(init_params, layer.table()), jax.random.key(0))
    x = np.random.default_rng(1).normal(size=(2, 5, 8))
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    y, heads = np.zeros_like(x), (x @ p["w_in"] + p["b_in"]).reshape(2, 5, 2, 12)
    q, k, v = np.split(heads, 3, axis=3)
    for b, t, h in np.ndindex(2, 5, 2):
        weights = softmax(k[b, : t + 1, h] @ q[b, t, h] / 2.0)
        y[b, t, 4 * h : 4 * h + 4] = weights @ v[b, : t + 1, h]
    expected = y @ p["w_out"] + p["b_out"]
    found = apply(layer, params, x.astype(np.float32))[0]
    assert np.allclose(found, expected, atol=1e-5)


def test_the_transformers_block_has_as_many_parameters_either_way():
    found = blocks(SCALES["paper"])
    at_once, in_blocks = (count_params(found[name].table()) for name in ("at_once", "in_blocks"))
    assert at_once == in_blocks


def test_a_block_of_any_length_can_be_asked_for():
    asked = study_of((300,))
    assert asked.groups["table2"] == ("gam-300", "at_once-300", "in_blocks-300")
    assert {f"gam-{tokens}" for tokens in LENGTHS} < asked.arms.keys()  # claims are about these


def test_a_table_has_the_papers_figures_beside_ours_and_verdicts_below():
    losses = {"gam": Summary(6.1317, 2, 0.0040), "transformer": Summary(6.1697, 2, 0.0085)}
    arms = {name: ArmFound({}, summaries={"loss": one}) for name, one in losses.items()}
    arms["global"] = ArmFound({}, summaries={"loss": Summary(6.1319, 2, 0.0358)})
    page = sheet(STUDY, Found("cpu", arms)).markdown()
    assert "6.1317 ± 0.0040 | 6.7828" in page
    assert f"GAM has a lower loss than the Transformer: {HOLDS}" in page
    assert f"GAM is better than global (bank) alone, no gates: {UNCLEAR}" in page
    assert "of 22.6 M parameters on WikiText-2" in page


@pytest.mark.slow
def test_table2_tells_time_and_memory_of_each_length(tmp_path, command):
    args = ("table2", "--scale=short", "--lengths=16,24", "--repeats=1", f"--out={tmp_path}")
    assert command("papers.gam.__main__", *args).code == 0
    assert "GAM, 24 tokens" in (tmp_path / "table2.md").read_text()
    arms = json.loads((tmp_path / "table2.json").read_text())["arms"]
    assert len(arms) == 6
    assert all(arm["figures"]["block"][0] > 0 for arm in arms.values())
    for name in ("gam", "at_once", "in_blocks"):
        short, long = (arms[f"{name}-{tokens}"]["figures"]["bytes"][0] for tokens in (16, 24))
        assert short < long


def test_the_tables_share_trials_of_whole_epochs_and_go_on(workshop, tmp_path, command):
    name = f"text:{workshop.path / 'corpus.txt'}"
    args = (f"--data={name}", f"--data_dir={workshop.path / 'data'}", f"--out={tmp_path}")
    args += ("--scale=short", "--arms=gam", "--json")
    first = command("papers.gam.__main__", "table1", "--repeats=1", *args)
    assert first.code == 0, first.err
    arm = json.loads(first.out)["arms"]["gam"]["figures"]
    windows = (SCALES["short"].tokens + 1 - 17) // 17 + 1
    assert arm["steps"] == [EPOCHS * -(-windows // 8)]
    assert arm["over_unigram"][0] < arm["over_bigram"][0]
    assert arm["epoch_seconds"][0] > 0
    assert [path.parent.name for path in tmp_path.rglob("found.json")] == ["gam-0"]
    again = command("papers.gam.__main__", "perplexity", *args)
    assert json.loads(again.out)["arms"]["gam"]["figures"] == arm


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("table4",), ["table1", "perplexity"]),
        (("table1", "--arms=gan"), ["'gan'", "'gam'"]),
        (("table1", "--seeds=x"), ["--seeds", "'x'"]),
        (("table2", "--lengths=x"), ["--lengths", "256,1024"]),
        (("table3", "--data=text:nowhere"), ["text:nowhere does not exist"]),
    ],
)
def test_bad_input_is_one_line_and_code_2(args, words, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command("papers.gam.__main__", *args)
    assert result.code == 2
    assert all(word in result.err for word in words), result.err
