"""A run of a model that is tuned at its side is scored, and writes, as any other."""

from __future__ import annotations

import dataclasses
import json

import pytest

from gam_jax.config import to_dict
from gam_jax.models import SideTuned
from gam_jax.training.folder import RunFolder
from tests.experiments.test_extract import CONFIG


@pytest.mark.slow
def test_it_begins_from_a_run_and_writes_what_it_has_learned(command, trained, tmp_path):
    old = RunFolder(trained.path).experiment()
    train = dataclasses.replace(old.train, steps=8, validate_every=8, goal="", stop_at=0)
    optimizer = dataclasses.replace(old.optimizer, only="side/*", warmup=1)
    new = dataclasses.replace(old, model=SideTuned(old.model), train=train, optimizer=optimizer)
    (tmp_path / "values.json").write_text(json.dumps(to_dict(new)))
    (tmp_path / "own.py").write_text(CONFIG.format(path=tmp_path / "values.json"))
    run = tmp_path / "run"
    words = (f"--config={tmp_path / 'own.py'}", f"--run={run}", f"--init={trained.path}")
    result = command("train", *words, "--mesh=data=2", "--json")
    assert result.code == 0, result.err
    loss = json.loads(result.out)["validation"]["loss"]
    result = command("evaluate", f"--run={run}", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["loss"] == pytest.approx(loss, rel=1e-4)
    result = command("evaluate", f"--run={run}", "--window=64", "--tokens=512", "--json")
    assert (result.code, json.loads(result.out)["window"]) == (0, 64), result.err
    texts = []
    for mesh in ("data=1", "tensor=2"):
        words = ("--prompt=the cat ", "--tokens=24", "--temperature=0", f"--mesh={mesh}", "--json")
        result = command("sample", f"--run={run}", *words)
        assert result.code == 0, result.err
        texts.append(json.loads(result.out)["text"])
    assert texts[0] == texts[1]
    result = command("sample", f"--run={run}", "--mesh=seq=2", "--prompt=a")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert "reads whole" in result.err
