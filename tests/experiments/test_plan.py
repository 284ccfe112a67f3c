"""`gam plan` prints the best meshes for machines that are not here, and flags for `train`."""

from __future__ import annotations

import json

import pytest

from experiments import plan_check, plan_measured
from tests.experiments import commands
from tests.sharding.test_topology import there

SMALL = (
    "--config.model.width=32",
    "--config.model.depth=2",
    "--config.data.window=64",
    "--config.model.vocab=256",
)


@pytest.fixture
def plan(monkeypatch, capsys):
    """Runs `gam plan` in this process."""
    return lambda *words: commands.in_process(monkeypatch, capsys, "plan", *words, *SMALL)


def test_the_best_are_printed_with_their_flags_and_refusals_by_reason(plan, tmp_path):
    links = [[1e9] * 4 for _ in range(4)]
    (tmp_path / "links.json").write_text(json.dumps({"bandwidth": links}))
    words = ("--cluster=h100:1x4", "--config.train.batch=6", "--json", "--presets=zero1")
    ended = plan(*words, f"--order={tmp_path / 'links.json'}")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert found["devices"] == 4
    assert sum(found["refused"].values()) < found["candidates"]
    assert found["refused"]["the batch does not divide"] > 0
    best = found["best"][0]
    parts = best["products"] + best["memory"] + sum(best["messages"].values()) + best["idle"]
    assert best["seconds"] == pytest.approx(parts)
    assert best["held"] < best["capacity"]
    assert best["flags"].startswith("gam train --config=gam_small --mesh=")
    assert found["best"] == sorted(found["best"], key=lambda each: each["seconds"])
    assert found["order"]["seconds"] == found["order"]["as_they_are"]  # uniform links
    assert found["without_latency"] == ["node"]


def test_what_fits_nowhere_is_an_answer(plan):
    ended = plan(
        "--cluster=h100:1x1", "--config.train.batch=1048576", "--presets=data", "--parts=1"
    )
    assert ended.code == 0
    assert "none fits" in ended.out
    assert "a device has too little memory" in ended.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--cluster is not given"),
        (("--cluster=h1000:1x8",), "did you mean 'h100'"),
        (("--cluster=v4:2x2x1",), "v4 has no figure links.torus.bandwidth"),
        (("--cluster=h100:1x8", "--axes=data", "--config.train.batch=7"), "a batch of 7 rows"),
        (("--cluster=h100:1x8", "--axes=data,width"), "'width' is no axis of a mesh"),
        (("--cluster=h100:1x8", "--presets=zero4"), "'zero4' is none of data"),
        (("--cluster=h100:1x8", "--order=nothing.json"), "no matrix that gam measure wrote"),
        (("measured", "--cluster=h100:1x4"), "measured: give 8 devices"),
        (("teach",), "say one of train, serve, check, measured"),
        (("serve", "--cluster=h100:1x2", "--trace=nothing.csv"), "--trace=nothing.csv: it cannot"),
        (("serve", "--cluster=h100:1x2", "--rows=x"), "--rows=x: give whole numbers"),
        (("serve", "--cluster=h100:1x2", "--budgets=8"), "--budgets=8: give numbers of at least"),
        (("serve", "--cluster=h100:1x2", "--axes=width"), "'width' is no axis of a mesh"),
        (("serve", "--cluster=h100:1x2", "--axes=tensor,tensor"), "'tensor' stands there twice"),
        (("serve", "--cluster=h100:1x2", "--overlap=ideal"), "--overlap is for train: serve does"),
        (("--cluster=h100:1x2", "--rate=3"), "--rate is for serve: train does not read it"),
        (("check", "--margin=2"), "--margin is for train and serve: check does not read it"),
    ],
)
def test_bad_input_is_one_line(plan, words, says):
    ended = plan(*words)
    assert ended.code == 2
    assert says in ended.err
    assert ended.err.count("\n") == 1


def test_ways_to_serve_are_printed_by_tokens_a_second(plan, tmp_path):
    (tmp_path / "trace.csv").write_text("arrives,reads,writes\n0,9,4\n0.001,5,6\n0.002,30,3\n")
    words = ("serve", "--cluster=h100:1x2", "--rows=2", "--json", f"--trace={tmp_path}/trace.csv")
    ended = plan(*words, "--host_seconds=0.0001")
    assert (ended.code, ended.err) == (0, "")
    found = json.loads(ended.out)
    assert (found["devices"], found["requests"], found["ways"]) == (2, 3, 2)
    assert found["refused"] == {}
    tokens = [each["tokens_a_second"] for each in found["best"]]
    assert tokens == sorted(tokens, reverse=True)
    for each in found["best"]:
        assert each["requests_a_second"] == pytest.approx(2 / 0.002)
        assert each["first"]["median"] <= each["first"]["most"]
        assert each["flags"].startswith("gam serve --run=RUN --mesh=")
    assert all(each["step"]["in_halves"] > 0 for each in found["best"])


def test_requests_that_all_come_at_once_have_no_rate(plan, tmp_path):
    (tmp_path / "trace.csv").write_text("arrives,reads,writes\n" + "0,9,4\n" * 2)
    words = ("serve", "--cluster=h100:1x1", "--rows=2", f"--trace={tmp_path}/trace.csv")
    ended = plan(*words, "--rate=5")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "its requests all arrive at once, and no --rate spreads them" in ended.err
    late = plan(*words, "--json", "--ttft=1e-9")
    assert json.loads(late.out)["refused"] == {"the bounds are not kept": 1}


def row(predicted, compiled, memory=100):
    """One case."""
    return plan_check.Row("a case", predicted, compiled, memory)


def test_errors_are_told_by_mean_ninth_tenth_and_worst():
    found = [row(90, 100), row(130, 100), row(100, 100), row(999, None)]
    told = plan_check.errors(found)
    assert told["mean"] == pytest.approx(0.4 / 3)
    assert told["worst"] == pytest.approx(0.3)
    assert plan_check.errors([row(1, None)]) == {}


def test_a_case_is_wrong_if_it_is_said_to_fit_and_does_not():
    assert row(90, None).wrong
    assert row(90, 101).wrong
    assert not row(101, None).wrong
    assert not row(101, 90).wrong


def test_rank_correlation_is_one_where_both_rank_alike_and_less_where_not():
    def rows(*pairs):
        return [plan_measured.Timed("a mesh", "data", 1, *pair) for pair in pairs]

    assert plan_measured.correlation(rows((1, 10), (2, 11), (3, 40))) == pytest.approx(1)
    assert plan_measured.correlation(rows((1, 40), (2, 11), (3, 10))) == pytest.approx(-1)
    assert plan_measured.correlation(rows((1, 10), (3, 11), (2, 40))) == pytest.approx(0.5)


@pytest.mark.slow
@there
def test_predicted_memory_is_near_the_compilers():
    from gam_jax.planning.targets import topology

    rows = list(plan_check.rows(topology("v5e:2x4"), plan_check.CASES[:3]))
    assert not any(each.wrong for each in rows)
    assert plan_check.errors(rows)["worst"] < 0.3
