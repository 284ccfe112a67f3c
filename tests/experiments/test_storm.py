"""Killed again and again, at any moment, a run ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
import pathlib
import random
import signal
import time

import chex
import pytest

from gam_jax.training.metrics import read_metrics
from sharding.checkpoint.store import DAMAGED, DELETING, PARTIAL
from tests.experiments.test_train import losses, params
from tests.workshop import STEPS

TEMPORARY = ("tmp", PARTIAL, DELETING, DAMAGED, "incomplete", "stale", "lock")


@dataclasses.dataclass(frozen=True)
class Moment:
    """When to kill: after some seconds, after some steps, or while a checkpoint is being saved."""

    kind: str
    amount: float

    @classmethod
    def draw(cls, random: random.Random, kill: int) -> Moment:
        kind = ("steps", "save", "seconds")[kill % 3]
        return cls(
            kind, {"steps": random.randint(1, 5), "save": 0.0}.get(kind, 4 * random.random())
        )

    def has_come(self, run: pathlib.Path, started: float, begun_at: int) -> bool:
        if self.kind == "seconds":
            return time.monotonic() - started >= self.amount
        if self.kind == "steps":
            return newest_step(run) >= begun_at + self.amount
        return any((run / "checkpoints").glob(f"*{PARTIAL}"))


def newest_step(run: pathlib.Path) -> int:
    return max((row["step"] for row in read_metrics(run / "metrics.jsonl")), default=0)


def storm(workshop, run: pathlib.Path, kills: int) -> int:
    """Starts a run, kills it that often, and lets it end; how often a save was hit."""
    random_ = random.Random(7)
    during_saves = 0
    command = ("train", f"--run={run}", "--resume", *workshop.settings)
    for kill in range(kills):
        process = workshop.start(*command, "--config.checkpoint.every=3")
        started, begun_at = time.monotonic(), newest_step(run)
        moment = Moment.draw(random_, kill)
        while not moment.has_come(run, started, begun_at):
            assert process.poll() is None, (moment, process.communicate())
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        during_saves += moment.kind == "save"
    last = workshop.run(*command, "--config.checkpoint.every=40")
    assert last.code == 0, last.err
    return during_saves


@pytest.mark.slow  # once killed: test_own_model.py, test_recovery.py
@pytest.mark.parametrize("kills", [3, 25])
def test_a_run_killed_at_random_moments_ends_bit_for_bit_as_the_one_left_alone(
    workshop, trained, tmp_path, monkeypatch, kills
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    run = tmp_path / "run"
    assert storm(workshop, run, kills) >= kills // 3
    (step, values), (other_step, other_values) = params(trained.path), params(run)
    assert step == other_step == STEPS
    chex.assert_trees_all_equal(values, other_values)
    for split in ("train", "validation"):
        assert losses(run, split) == losses(trained.path, split)
    assert {path.name for path in run.iterdir()} == {path.name for path in trained.path.iterdir()}
    left = [p for p in run.rglob("*") if any(word in p.name for word in TEMPORARY)]
    assert left == []
    assert list((tmp_path / "temporary").iterdir()) == []
