"""What routers did is in a run's metrics and its picture."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import image

from experiments.contenders import FURTHER
from experiments.load_figure import draw_load
from gam_jax.params import count_params
from gam_jax.training.expert_load import SPLIT, routing_lines, routing_scalars
from tests.workshop import metrics_of

MEASURES = {
    "loss": 1.0,
    "penalty": 0.5,
    "ffn/routed/load": np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]),
    "ffn/routed/dropped": np.array([0.0, 0.25]),
    "ffn/routed/router_entropy": np.array([1.0, 0.5]),
}


def test_a_line_holds_the_loads_of_every_block_and_the_scalars_their_means():
    (line,) = routing_lines(MEASURES)
    assert line["layer"] == "ffn"
    assert line["load"] == MEASURES["ffn/routed/load"].tolist()
    assert line["max_violation"] == [0.5, 2.0]
    assert routing_scalars(MEASURES) == {
        "max_violation": 1.25,
        "dropped": 0.125,
        "router_entropy": 0.75,
    }
    assert routing_lines({"loss": 1.0}) == []
    assert routing_scalars({"loss": 1.0}) == {}


def rows(load, steps=20):
    """Metrics whose loads are even at first and then these."""
    even = np.full(np.shape(load), 1 / np.shape(load)[-1]).tolist()
    lines = [{"step": step, "split": SPLIT, "layer": "ffn"} for step in range(1, steps + 1)]
    return [line | {"load": load if line["step"] > 18 else even} for line in lines]


def test_the_picture_has_the_colours_of_the_loads(tmp_path):
    assert not draw_load([{"step": 1, "split": "train"}], tmp_path / "none.png")
    assert draw_load(rows([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1]]), tmp_path / "load.png")
    pixels = image.imread(tmp_path / "load.png")[..., :3]
    red, blue = pixels[..., 0] > pixels[..., 2] + 0.2, pixels[..., 2] > pixels[..., 0] + 0.2
    assert red.sum() > 500
    assert blue.sum() > 500


@pytest.mark.parametrize("name", [name for name, one in FURTHER.items() if one.experts])
def test_a_token_meets_as_many_parameters_as_in_the_other_contenders(name):
    block = FURTHER[name].sized(128, 196_600)
    hidden = 2 * block.ffn.ffn.hidden
    assert 0.98 * 196_600 <= FURTHER[name].active(128, hidden) <= 196_600
    assert count_params(block.table()) > 2 * 196_600


@pytest.mark.slow
def test_a_run_with_experts_records_and_draws_their_loads(workshop, tmp_path):
    settings = [s for s in workshop.settings if "steps" not in s and "validate" not in s]
    small = ("train.steps=12", "train.validate_every=12", "model.unroll=1", "model.depth=1")
    result = workshop.run(
        "train",
        "--config=experiments/configs/moe_small.py",
        f"--run={tmp_path / 'run'}",
        *settings,
        *(f"--config.{setting}" for setting in small),
        "--config.model.block.ffn.ffn.hidden=16",
    )
    assert result.code == 0, result.err
    assert "load of experts in" in result.out
    lines = metrics_of(tmp_path / "run")
    loads = [row for row in lines if row["split"] == SPLIT]
    assert [row["step"] for row in loads] == list(range(1, 13))
    assert all(np.sum(row["load"], axis=1) == pytest.approx(1, abs=1e-3) for row in loads)
    train = [row for row in lines if row["split"] == "train"]
    assert all(row["penalty"] > 0 and row["router_entropy"] > 0 for row in train)
    assert (tmp_path / "run" / "load.png").exists()
