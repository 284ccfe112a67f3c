"""Ways of balancing: they differ in the router alone, and are read from a run's metrics."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.papers.balance import ROUTERS, STUDY, violations
from experiments.study import Setting
from gam_jax.config import flatten, to_dict
from gam_jax.training.expert_load import SPLIT


def rows(load, steps=20):
    """Metrics whose loads are even at first and then these."""
    even = np.full(np.shape(load), 1 / np.shape(load)[-1]).tolist()
    lines = [{"step": step, "split": SPLIT, "layer": "ffn"} for step in range(1, steps + 1)]
    return [line | {"load": load if line["step"] > 18 else even} for line in lines]


def test_max_violation_is_of_the_last_tenth_of_the_steps():
    found = violations(rows([[0.5, 0.25, 0.25], [0.4, 0.3, 0.3]]))
    assert found["of_batches"] == pytest.approx((0.5 + 0.2) / 2)
    assert found["together"] == pytest.approx((0.5 + 0.2) / 2)
    assert found["worst_block"] == pytest.approx(0.5)
    assert found["least_load"] == pytest.approx(0.75)


@pytest.mark.parametrize("scale", STUDY.scales)
def test_ways_of_balancing_differ_in_the_router_alone(scale):
    runs = [arm.experiment(Setting(scale)) for arm in STUDY.arms.values()]
    assert [run.model.block.ffn.router for run in runs] == list(ROUTERS.values())
    flat = [flatten(to_dict(run)) for run in runs]
    differ = {name for one in flat for name in one if one[name] != flat[0][name]}
    assert all(name.startswith("model.block.ffn.router.") for name in differ)


@pytest.mark.slow
def test_the_command_trains_tells_and_draws_loads(workshop, tmp_path):
    result = workshop.run(
        "balance",
        "--scale=short",
        "--arms=bias",
        "--steps=4",
        f"--data=text:{workshop.path / 'corpus.txt'}",
        f"--data_dir={workshop.path / 'data'}",
        f"--out={tmp_path}",
        "--json",
    )
    assert result.code == 0, result.err
    figures = json.loads(result.out)["arms"]["bias"]["figures"]
    assert set(figures) >= set(STUDY.measures)
    assert 0 <= figures["least_load"][0] < 1 < figures["together"][0] + 1
    assert (tmp_path / "short" / "bias-0" / "load.png").exists()
