"""A run trains, ends as if it had never been interrupted, and says when it cannot go on."""

from __future__ import annotations

import json
import math
import signal
import time

import chex
import numpy as np
import pytest
from matplotlib import image

from gam_jax.training.folder import RunFolder, load_params
from sharding.layout import Layout
from sharding.mesh import make_mesh
from tests.workshop import STEPS, metrics_of


def losses(path, split):
    return [(row["step"], row["loss"]) for row in metrics_of(path) if row["split"] == split]


def params(path):
    folder = RunFolder(path)
    return load_params(folder, folder.experiment(), Layout(make_mesh()))


def test_the_model_beats_the_bigram_of_the_same_text(trained):
    validation, baselines = trained.summary["validation"], trained.summary["baselines"]
    assert validation["loss"] < 0.7 * baselines["bigram"]["loss"]
    assert baselines["bigram"]["loss"] < baselines["unigram"]["loss"] < math.log(256)


def test_the_summary_agrees_with_itself(trained):
    summary = trained.summary
    assert (summary["step"], summary["interrupted"]) == (STEPS, False)
    assert summary["tokens_per_second"] > 0
    found = summary["validation"]
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    # One separator at most is no byte of the text, so bits per token are bits per byte.
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2), rel=2e-3)


def test_the_folder_holds_the_whole_run(trained):
    names = {path.name for path in trained.path.iterdir()}
    assert names == {
        "baselines.json",
        "checkpoints",
        "config.json",
        "curves.png",
        "history.jsonl",
        "metrics.jsonl",
        "tensorboard",
        "tokenizer.json",
    }
    pixels = image.imread(trained.path / "curves.png")
    assert min(pixels.shape[:2]) > 200
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 3
    saved = json.loads((trained.path / "config.json").read_text())
    assert (saved["model"]["width"], saved["model"]["vocab"]) == (32, 256)
    assert saved["model"]["block"]["mixer"]["layer"] == "GAM"
    assert any((trained.path / "tensorboard").iterdir())


def test_every_step_and_validation_has_its_line(trained):
    rows = trained.metrics
    train = [row for row in rows if row["split"] == "train"]
    assert [row["step"] for row in train] == list(range(1, STEPS + 1))
    own = {"step", "split", "loss", "grad_norm", "learning_rate"}
    own |= {"tokens_per_second", "process_peak_bytes"}
    timed = {"step_seconds", "data_wait_seconds", "save_seconds", "model_flops_per_second"}
    assert train[0].keys() == own  # it compiled
    for row in train[1:]:
        assert own <= row.keys() <= own | timed
    assert sum(row.keys() == own | timed for row in train) >= STEPS - 3
    assert [step for step, _ in losses(trained.path, "validation")] == [60, STEPS]
    assert rows[-1]["loss"] == trained.summary["validation"]["loss"]


def test_the_first_loss_is_that_of_knowing_nothing(trained):
    assert losses(trained.path, "train")[0][1] == pytest.approx(math.log(256), rel=0.1)


@pytest.fixture(scope="module")
def interrupted(workshop):
    """The same run in three parts: up to `stop_at`, up to a SIGTERM, and to the end."""
    path = workshop.path / "interrupted"
    resume = (f"--run={path}", "--resume", "--json")
    first = workshop.run("train", *resume, *workshop.settings, "--config.train.stop_at=13")
    assert first.code == 0, first.err

    process = workshop.start("train", *resume, "--config.train.stop_at=0", "--unfinished-code=75")
    while process.poll() is None and losses(path, "train")[-1][0] < 20:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 75, err

    last = workshop.run("train", *resume, "--config.train.stop_at=0")
    assert last.code == 0, last.err
    return path, [json.loads(text) for text in (first.out, out, last.out)]


def test_resume_of_an_empty_folder_starts_there(interrupted):
    _, (first, _, _) = interrupted
    assert (first["step"], first["interrupted"]) == (13, False)


def test_a_signal_ends_a_run_early_and_in_order(interrupted):
    _, (_, signalled, _) = interrupted
    assert signalled["interrupted"]
    assert 20 <= signalled["step"] < STEPS


def test_a_run_in_parts_equals_the_whole_run_bit_for_bit(trained, interrupted):
    path, (_, _, last) = interrupted
    assert losses(path, "train") == losses(trained.path, "train")
    assert (
        dict(losses(path, "validation")).items() >= dict(losses(trained.path, "validation")).items()
    )
    assert last["validation"] == trained.summary["validation"]
    (step, values), (other_step, other_values) = params(trained.path), params(path)
    assert step == other_step == STEPS
    chex.assert_trees_all_equal(values, other_values)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was_good(workshop, command):
    path = workshop.path / "exploded"
    result = command(
        "train",
        f"--run={path}",
        "--mesh=data=1",
        *workshop.settings,
        "--config.model.depth=1",
        "--config.checkpoint.every=1",
        "--config.checkpoint.keep=3",
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.warmup=1",
    )
    assert result.code == 2
    last = result.err.splitlines()[-1]
    assert last.startswith("error: the loss of step ")
    assert "go on at a lower rate by --resume=latest-good" in last
    assert "Traceback" not in result.err
    step, kept = params(path)
    assert f"checkpoint {step} is kept" in last
    assert f"the loss of step {step + 1} is" in last
    chex.assert_tree_all_finite(kept)
