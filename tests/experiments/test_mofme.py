"""MoFME beside a mixture: what both cost, by counting, and that they are timed in turn."""

from __future__ import annotations

import json

import pytest

from experiments.benchmark import mofme as benchmark
from experiments.papers.mofme import LARGEST, SIZES, STUDY, WIDTH, arm_name, layers_of
from experiments.study import Setting
from gam_jax.params import count_params


def numbers(kind, experts, chosen):
    """What is counted of an arm."""
    return STUDY.arms[arm_name(kind, experts, chosen)].numbers(Setting(), 0)


@pytest.mark.parametrize(("experts", "chosen"), SIZES)
def test_what_is_saved_is_what_the_tables_count(experts, chosen):
    counts = [count_params(layer.table()) for layer in layers_of(experts, chosen)]
    found = [numbers(kind, experts, chosen) for kind in ("mixture", "mofme")]
    assert [one["parameters"] for one in found] == counts
    saved = 1 - found[1]["operations"] / found[0]["operations"]
    assert found[1]["operations_saved"] == pytest.approx(100 * saved)
    assert found[1]["parameters_saved"] == pytest.approx(100 * (1 - counts[1] / counts[0]))


def test_an_expert_costs_two_squares_of_the_width_where_a_whole_one_costs_eight():
    for kind, squares in (("mixture", 8), ("mofme", 2)):
        more = numbers(kind, 8, 2)["parameters"] - numbers(kind, 4, 2)["parameters"]
        assert more / 4 / WIDTH**2 == pytest.approx(squares, rel=0.02)


def test_the_published_share_is_reached_with_the_most_experts_alone():
    saved = {size: numbers("mofme", *size)["parameters_saved"] for size in SIZES}
    assert [size for size in SIZES if saved[size] >= 72] == [LARGEST]


@pytest.mark.slow
def test_the_study_counts_and_times_two_arms(command, tmp_path):
    args = ("--scale=short", "--arms=mofme_4_2,mixture_4_2", "--repeats=2", f"--out={tmp_path}")
    result = command("study.__main__", "run", "mofme", *args, "--json")
    assert result.code == 0, result.err
    arms = json.loads(result.out)["arms"]
    for name, arm in arms.items():
        assert arm["kind"] == "exact"
        assert arm["turns"] == ["forward", "both"], name
        assert all(len(arm["figures"][measure]) == 2 for measure in arm["turns"])
        assert all(seconds > 0 for measure in arm["turns"] for seconds in arm["figures"][measure])


@pytest.mark.slow
def test_the_benchmark_has_a_row_a_size(monkeypatch):
    monkeypatch.setattr(benchmark, "SHORT", ((4, 2),))
    (row,) = benchmark.run(repeats=2, short=True).values()
    assert row["MoFME parameters"].median == numbers("mofme", 4, 2)["parameters"]
    assert row["parameters saved"].unit == "%"
    assert 0 < row["MoFME forward"].low <= row["MoFME forward"].high
    assert row["published parameters saved"].median == 72
