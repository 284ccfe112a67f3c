"""A run folder that version 0.1.0 wrote before there were models of other kinds opens unchanged."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest

from gam_jax.models import LanguageModel
from gam_jax.training.folder import RunFolder
from tests.workshop import metrics_of

OLD = pathlib.Path("tests/golden/run_0_1")


def test_its_configuration_means_a_language_model():
    saved = json.loads((OLD / "run" / "config.json").read_text())
    assert "class" not in saved["model"]
    experiment = RunFolder(OLD / "run").experiment()
    assert isinstance(experiment.model, LanguageModel)
    assert experiment.model.vocab == 256


def test_it_goes_on_as_the_old_code_went_on(workshop, command):
    path = workshop.path / "old"
    shutil.copytree(OLD / "run", path)
    data = f"--config.data.dir={workshop.path / 'data'}"
    words = ("--resume", "--mesh=data=1", data, "--json")
    result = command("train", f"--run={path}", *words)
    assert result.code == 0, result.err
    assert json.loads(result.out)["step"] == 6
    old = [json.loads(line) for line in (OLD / "continued.jsonl").read_text().splitlines()]
    for before, now in zip(old, metrics_of(path), strict=True):
        assert (before["step"], before["split"]) == (now["step"], now["split"])
        for name in {"loss", "grad_norm", "learning_rate", "bits_per_byte"} & before.keys():
            assert now[name] == pytest.approx(before[name], rel=1e-5), name


def test_it_is_evaluated_with_the_old_figures(command, workshop):
    folder = workshop.path / "old_as_it_was"
    shutil.copytree(OLD / "run", folder)
    saved = json.loads((folder / "config.json").read_text())
    saved["data"]["dir"] = str(workshop.path / "data")
    (folder / "config.json").write_text(json.dumps(saved))
    result = command("evaluate", f"--run={folder}", "--json")
    assert result.code == 0, result.err
    old = [row for row in metrics_of(folder) if row["split"] == "validation"][-1]
    assert json.loads(result.out)["loss"] == pytest.approx(old["loss"], rel=1e-5)
