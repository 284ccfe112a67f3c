"""The GAM paper's tables: sizes as published, one change at a time, verdicts, the commands."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark.timing import Quantity
from experiments.papers.gam import published, table2, tables
from experiments.papers.gam.arms import ARMS, TABLES
from experiments.papers.gam.relations import HOLDS, ONE_SEED, REVERSED, UNCLEAR, faster, lower_loss
from experiments.papers.gam.scale import SCALES
from experiments.papers.gam.trials import Found, Trials
from gam_jax.config import flatten, to_dict
from gam_jax.params import count_params, init_params
from tests.oracle import softmax

PAPER = SCALES["paper"]
COUNTS = {
    "gam": 22_599_680,
    "transformer": 24_166_400,
    "mamba": 20_504_576,
    "sum": 19_447_808,
    "global": 19_435_520,
    "local": 17_874_944,
}


def experiment(name, scale=PAPER):
    """The experiment of an arm."""
    return ARMS[name].change(scale.protocol("wikitext2"), scale)


def parameters(name):
    """Of an arm's model at the published size."""
    return count_params(dataclasses.replace(experiment(name).model, vocab=10_000).table())


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_models_have_the_published_number_of_parameters(name, count):
    assert parameters(name) == count


def test_the_recipe_has_the_size_of_the_published_model():
    assert parameters("recipe") == parameters("gam")


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("positions", {"model.init"}),
        ("rate", {"optimizer.learning_rate"}),
        ("batch", {"train.batch"}),
        ("decay", {"optimizer.decay_all"}),
        ("dropout", {"model.dropout"}),
        ("recipe_old_positions", {"optimizer.learning_rate", "optimizer.decay_all", "train.batch"}),
    ],
)
def test_an_arm_changes_what_it_says_and_nothing_else(name, changed):
    before, after = (flatten(to_dict(experiment(arm))) for arm in ("gam", name))
    assert {field for field in before | after if before.get(field) != after.get(field)} == changed


def test_the_small_size_differs_from_the_published_in_sizes_alone():
    small, large = (flatten(to_dict(experiment("gam", scale))) for scale in SCALES.values())
    differ = {name for name in small | large if small.get(name) != large.get(name)}
    assert differ == {
        "model.width",
        "model.depth",
        "model.unroll",
        "model.context",
        "model.block.mixer.slots",
        "data.tokenizer",
        "data.window",
        "data.stride",
        "train.batch",
        "train.tokens",
        "train.validation_tokens",
    }


def found(*losses):
    """Trials of these losses."""
    return Found(losses, parameters=1, steps=10, epoch_steps=2)


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        ((2.0, 2.01, 1.99), (3.0, 3.01, 2.99), HOLDS),
        ((3.0, 3.01, 2.99), (2.0, 2.01, 1.99), REVERSED),
        ((2.0, 2.4, 1.6), (2.1, 2.5, 1.7), UNCLEAR),
        ((2.0,), (3.0,), ONE_SEED),
    ],
)
def test_a_relation_holds_beyond_the_noise_or_is_not_claimed(better, worse, verdict):
    assert lower_loss("", found(*better), found(*worse)).verdict == verdict


def test_the_papers_own_two_runs_do_not_tell_its_first_ablation_from_noise():
    full = found(np.log(published.ABLATION_PERPLEXITY["gam"]), published.LOSS["WikiText-2"]["gam"])
    alone = found(np.log(published.ABLATION_PERPLEXITY["global"]))
    assert full.spread > alone.loss - full.losses[0]


def test_faster_is_said_where_quartiles_do_not_meet():
    quick, slow, wide = (
        Quantity(median, low, high, "s")
        for median, low, high in ((1.0, 0.9, 1.1), (2.0, 1.8, 2.2), (1.5, 1.0, 2.0))
    )
    assert faster("", quick, slow).verdict == HOLDS
    assert faster("", slow, quick).verdict == REVERSED
    assert faster("", quick, wide).verdict == UNCLEAR


def test_scores_at_once_are_attention_by_its_formula():
    layer = table2.ScoresAtOnce(width=8, heads=2)
    params = init_params(layer.table(), jax.random.key(0))
    x = np.asarray(jax.random.normal(jax.random.key(1), (2, 5, 8)), np.float64)
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    y, heads = np.zeros_like(x), (x @ p["w_in"] + p["b_in"]).reshape(2, 5, 2, 12)
    q, k, v = np.split(heads, 3, axis=3)
    for b, t, h in np.ndindex(2, 5, 2):
        weights = softmax(k[b, : t + 1, h] @ q[b, t, h] / 2.0)
        y[b, t, 4 * h : 4 * h + 4] = weights @ v[b, : t + 1, h]
    expected = y @ p["w_out"] + p["b_out"]
    assert np.allclose(layer(params, jnp.float32(x))[0], expected, atol=1e-5)


def test_the_transformers_block_has_as_many_parameters_either_way():
    counts = [count_params(block.table()) for block in table2.blocks(PAPER).values()]
    assert counts[1] == counts[2]


def test_table2_prints_what_grows_how(tmp_path, command):
    args = ("table2", "--lengths=16,32", "--repeats=1", f"--out={tmp_path}")
    assert command("papers.gam.__main__", *args).code == 0
    table = (tmp_path / "cpu" / "table2.md").read_text()
    assert "GAM is faster than the Transformer" in table
    assert "| 32 |" in table
    rows = json.loads((tmp_path / "cpu" / "table2.json").read_text())["rows"]
    assert all(one["seconds"]["median"] > 0 for row in rows for one in row["blocks"].values())


@pytest.fixture
def smallest(monkeypatch):
    """The cpu scale, cut to seconds."""
    cut = {"width": 8, "slots": 8, "depth": 1, "heads": 1, "window": 16, "vocab": 60, "epochs": 2}
    small = dataclasses.replace(SCALES["cpu"], **cut, tokens=1024, validation_tokens=256)
    monkeypatch.setitem(SCALES, "cpu", small)


def test_the_tables_share_trials_and_go_on(smallest, workshop, tmp_path, command):
    text = (f"--data=text:{workshop.path / 'corpus.txt'}", f"--data_dir={workshop.path / 'data'}")
    args = (*text, f"--out={tmp_path}", "--arms=gam", "--json")
    first = command("papers.gam.__main__", "table1", "--repeats=1", *args)
    assert first.code == 0, first.err
    (trials,) = json.loads(first.out)["trials"]
    arm = trials["arms"]["gam"]
    assert arm["steps"] == 2 * arm["epoch_steps"] == 16
    assert arm["step_seconds"]["median"] > 0
    assert [path.parent.name for path in tmp_path.rglob("found.json")] == ["gam-0"]
    again = command("papers.gam.__main__", "perplexity", *args)
    (shared,) = json.loads(again.out)["trials"]
    assert shared["arms"]["gam"]["losses"] == arm["losses"]


def test_a_table_has_the_papers_figures_beside_ours():
    lines = {name: {"loss": loss} for name, loss in (("unigram", 6.0), ("bigram", 5.0))}
    arms = {"gam": found(5.5, 5.6), "transformer": found(6.1, 6.2)}
    page = tables.table1(Trials("text:notes.txt", lines, arms)).markdown()
    assert "882.54" in page
    assert "GAM has a lower loss than the Transformer: holds" in page
    assert "within 0.1 nats of counting tokens (unigram): Transformer" in page
    assert "of 22.6 M parameters on WikiText-2" in page
    stories = tables.table1(Trials("tinystories", lines, arms)).markdown()
    assert "601.4" in stories
    assert "of 22.6 M parameters on TinyStories" in stories


def test_every_table_names_arms_that_there_are():
    assert {name for names in TABLES.values() for name in names} <= ARMS.keys()


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
    assert not list(tmp_path.iterdir())
