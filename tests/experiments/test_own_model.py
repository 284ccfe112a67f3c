"""A model of one's own, on data of one's own, has all that language models have."""

from __future__ import annotations

import json
import pathlib
import signal
import time

import chex
import numpy as np
import pytest

from gam_jax.training.folder import RunFolder, load_params
from sharding.layout import Layout
from sharding.mesh import make_mesh
from tests.experiments import own_model
from tests.workshop import metrics_of

FILE = str(pathlib.Path(own_model.__file__).relative_to(pathlib.Path.cwd()))
CONFIG = f"--config={FILE}"


def losses(path):
    return [(row["step"], row["loss"]) for row in metrics_of(path) if row["split"] == "train"]


def params(path):
    folder = RunFolder(path)
    return load_params(folder, folder.experiment(), Layout(make_mesh()))[1]


@pytest.fixture(scope="module")
def alone(workshop):
    """The run of one device."""
    path = workshop.path / "own_alone"
    result = workshop.run("train", CONFIG, f"--run={path}", "--json")
    assert result.code == 0, result.err
    return path, json.loads(result.out)


@pytest.mark.slow
def test_it_learns_and_says_so_in_its_own_units(alone):
    path, summary = alone
    assert summary["validation"]["accuracy"] > 0.7
    assert summary["validation"]["images"] == 64
    assert summary["images_per_second"] > 0
    assert summary["baselines"] == {}
    rows = [row for row in metrics_of(path) if row["split"] == "train"]
    assert {"accuracy", "images_per_second", "grad_norm"} <= rows[-1].keys()
    assert not (path / "tokenizer.json").exists()


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(("--emulate=4", "--mesh=data=4"), marks=pytest.mark.slow),
        ("--emulate=4", "--config.parallel.preset=fully_sharded"),
    ],
    ids=["data=4", "fully_sharded"],
)
def test_any_mesh_gives_the_losses_of_one_device(workshop, alone, mesh):
    path = workshop.path / f"own_{mesh[1].split('=')[-1]}"
    result = workshop.run("train", CONFIG, f"--run={path}", "--config.train.stop_at=20", *mesh)
    assert result.code == 0, result.err
    np.testing.assert_allclose(losses(path), losses(alone[0])[:20], rtol=1e-5)


@pytest.mark.slow  # that processes train alike is always tested in test_elastic.py
def test_two_processes_give_the_losses_of_one_device(workshop, alone):
    path = workshop.path / "own_two"
    result = workshop.run(
        "launch",
        "--processes=2",
        "--devices_per_process=2",
        "--",
        "gam",
        "train",
        CONFIG,
        f"--run={path}",
        "--config.parallel.preset=fully_sharded",
        "--config.train.stop_at=20",
    )
    assert result.code == 0, result.err
    np.testing.assert_allclose(losses(path), losses(alone[0])[:20], rtol=1e-5)


def test_killed_and_resumed_it_is_the_same_run_bit_for_bit(workshop, alone):
    path = workshop.path / "own_killed"
    process = workshop.start("train", CONFIG, f"--run={path}")
    while process.poll() is None and not (path / "checkpoints" / "20").is_dir():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    resumed = workshop.run("train", CONFIG, f"--run={path}", "--resume")
    assert resumed.code == 0, resumed.err
    assert losses(path) == losses(alone[0])
    chex.assert_trees_all_equal(params(path), params(alone[0]))


def test_it_is_evaluated_on_another_mesh(command, workshop, alone):
    path, summary = alone
    result = workshop.run(
        "evaluate", CONFIG, f"--run={path}", "--emulate=2", "--mesh=data=2", "--json"
    )
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["loss"] == pytest.approx(summary["validation"]["loss"], rel=1e-5)
    assert found["accuracy"] == summary["validation"]["accuracy"]


def test_it_is_reported(command, alone, tmp_path):
    out = tmp_path / "page.html"
    result = command("report.__main__", CONFIG, str(alone[0]), f"--out={out}")
    assert result.code == 0, result.err
    text = out.read_text()
    assert "images/s" in text
    assert "bits per byte" not in text


def test_without_its_file_a_run_says_which_class_is_missing(workshop, alone):
    result = workshop.run("evaluate", f"--run={alone[0]}")
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 1
    assert "unknown model 'QuarterClassifier'" in result.err
    assert "--config=FILE.py" in result.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("missing.py", "there is no such Python file"),
        ("README.md", "there is no such Python file"),
    ],
)
def test_a_file_that_cannot_be_run_is_one_line(command, alone, text, words):
    result = command("evaluate", f"--run={alone[0]}", f"--config={text}")
    assert result.code == 2
    assert words in result.err


def test_commands_for_text_refuse_it_in_one_line(command, alone):
    result = command("sample", CONFIG, f"--run={alone[0]}")
    assert result.code == 2
    assert "for language models" in result.err
