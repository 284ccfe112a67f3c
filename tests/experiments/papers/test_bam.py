"""BAM's recipe as a study: who sees what, who begins from whom, and what it costs."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from experiments.papers.bam import (
    DOMAINS,
    MIXTURES,
    PUBLISHED,
    SCALES,
    SEED,
    SOURCES,
    STUDY,
    dense,
    operations,
    shares,
    upcycled,
)
from experiments.study import Setting
from experiments.study.claim import HOLDS, REVERSED, Values
from experiments.study.run import experiment_of, with_seed, with_sources
from gam_jax.data import TextMixture
from tests.arrays import initial

SHORT = Setting("short")


def experiment(name):
    """Of an arm, at the short scale."""
    return experiment_of(STUDY.arms[name], SHORT)


def test_operations_are_those_of_the_paper_s_table():
    """Of a layer with a context of 256, recomputed: its print adds 6,144 to each feed-forward."""
    paper = dense(width=1024, depth=1, heads=8, hidden=2048, window=256, vocab=256)
    head = 2 * 1024 * 256
    assert operations(paper, "btx") - head == 21_510_144 - 6_144
    assert operations(paper, "bam") - head == 48_257_024 - 6_144
    assert operations(paper, "") < operations(paper, "btx")
    assert operations(paper, "btx") < operations(paper, "bam_shared") < operations(paper, "bam")


@pytest.mark.parametrize("scale", SCALES)
def test_equal_compute_is_as_many_operations_as_btx_has(scale):
    own = SCALES[scale]
    base = own.steps("btx") * operations(own.model, "btx")
    for name, (_, recipe, equal_compute) in MIXTURES.items():
        work = own.steps(name) * operations(own.model, recipe)
        assert (abs(work / base - 1) < 0.1) == (equal_compute or name == "btx")


def test_a_specialist_sees_a_tenth_of_all_domains_and_mixtures_see_all_alike():
    assert shares("english") == pytest.approx({"python": 1 / 30, "english": 28 / 30, "c": 1 / 30})
    for name in (SEED, *MIXTURES):
        data = experiment(name).data
        assert isinstance(data, TextMixture)
        assert data == experiment(SEED).data
        assert list(data.weights.values()) == pytest.approx([1 / 3] * 3)
    assert list(experiment("c").data.weights) == [f"domain:{name}" for name in DOMAINS]


def test_all_mixtures_see_the_same_rows_and_no_arm_those_of_its_sources_again():
    seeds = {}
    for name in (*SOURCES, *MIXTURES):
        arm, one = STUDY.arms[name], with_seed(experiment(name), 5)
        seeds[name] = (one if arm.fitted is None else arm.fitted(one, None)).train.seed
    assert seeds[SEED] == 5
    assert len({seeds[name] for name in DOMAINS}) == 1
    assert len({seeds[name] for name in MIXTURES}) == 1
    assert len(set(seeds.values())) == 3


def test_every_mixture_begins_from_the_seed_and_the_specialists():
    order = with_sources(STUDY, ["bam_compute"])
    assert order == (*SOURCES, "bam_compute")
    assert with_sources(STUDY, ["c"]) == (SEED, "c")


def test_experts_are_the_sources_and_routers_are_of_the_seed_alone():
    sources = [with_seed(experiment(name), 7) for name in SOURCES]
    model = sources[0].model
    params = [initial(model, i) for i in range(len(SOURCES))]
    made = {}
    for name, (_, recipe, _) in MIXTURES.items():
        one = experiment(name)
        made[name] = jax.tree.map(np.asarray, upcycled(recipe, one, sources, params, 2007))
        wanted = jax.eval_shape(one.model.init_params, jax.random.key(0))
        assert jax.tree.map(np.shape, made[name]) == jax.tree.map(np.shape, wanted)
        for i, own in enumerate(params):
            gate = made[name]["blocks"]["ffn"]["experts"]["w_gate"][:, i]
            np.testing.assert_array_equal(gate, own["blocks"]["ffn"]["w_gate"])
    jax.tree.map(np.testing.assert_array_equal, made["bam"], made["bam_compute"])
    other = [with_seed(one, 8) for one in sources]
    again = upcycled("btx", experiment("btx"), other, params, 2007)
    router, another = (p["blocks"]["ffn"]["router"] for p in (made["btx"], again))
    assert not np.array_equal(router, another)


def test_models_of_590_million_have_the_published_parameters_but_not_those_of_a_token():
    """The paper counts one router of two, and leaves out the shared keys."""
    assert PUBLISHED.width == 1024
    found = {n: STUDY.arms[n].numbers(SHORT, 0) for n in STUDY.groups["sizes"]}
    words = {}
    for claim in STUDY.claims:
        if claim.arms[0] in found:
            value = Values((found[claim.arms[0]][claim.measure],), "exact")
            words[claim.arms[0], claim.measure] = claim.judge({claim.arms[0]: value}).word
    assert all(word == HOLDS for (_, measure), word in words.items() if measure == "parameters")
    differ = {name for (name, measure), word in words.items() if word == REVERSED}
    assert differ == {"size_bam", "size_bam_shared"}


@pytest.mark.slow
def test_the_command_trains_sources_first_and_then_reads_what_is_done(command, tmp_path):
    folder = tmp_path / "bam"
    args = ("--scale=short", "--steps=3", "--arms=btx", f"--out={folder}", "--json")
    args += (f"--data_dir={tmp_path / 'data'}",)
    first = command("bam", *args)
    assert first.code == 0, first.err
    arms = json.loads(first.out)["arms"]
    assert list(arms) == [*SOURCES, "btx"]
    losses = {name: arm["figures"]["loss"][0] for name, arm in arms.items()}
    assert losses["btx"] < losses[SEED] < 6
    for arm in arms.values():
        figures = arm["figures"]
        each = [figures[f"loss/domain:{name}"][0] for name in DOMAINS]
        assert figures["loss"][0] == pytest.approx(sum(each) / 3)
        assert figures["steps"] == [3]
    before = (folder / "short" / "btx-0" / "metrics.jsonl").read_bytes()
    again = command("bam", *args)
    assert json.loads(again.out)["arms"]["btx"]["figures"] == arms["btx"]["figures"]
    assert (folder / "short" / "btx-0" / "metrics.jsonl").read_bytes() == before


def test_seeds_that_are_no_numbers_are_refused(command, tmp_path):
    result = command("bam", "--seeds=0,x", f"--out={tmp_path}")
    assert result.code == 2
    assert "--seeds=0,x: give whole numbers" in result.err
