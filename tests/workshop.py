"""One small corpus, and one small run on it that every test of the commands looks at."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.experiments import commands
from tests.experiments.commands import Result

WORDS = {
    "article": ["the", "a", "one"],
    "noun": ["cat", "dog", "bird", "fish", "mouse"],
    "verb": ["sees", "likes", "follows", "hears"],
    "place": ["near", "behind", "under"],
}
SENTENCES = (
    ("article", "noun", "verb", "article", "noun"),
    ("article", "noun", "verb", "article", "noun", "place", "article", "noun"),
)
STEPS = 120


def text(lines: int) -> str:
    """Sentences of a small grammar: a few letters of a word tell the rest of it."""
    draw = random.Random(0)
    sentences = (draw.choice(SENTENCES) for _ in range(lines))
    return "".join(" ".join(draw.choice(WORDS[kind]) for kind in s) + ".\n" for s in sentences)


@dataclasses.dataclass(frozen=True)
class Workshop:
    """A folder with the corpus, where runs are made.

    Attributes:
      path: of the folder.
    """

    path: pathlib.Path

    @property
    def settings(self) -> tuple[str, ...]:
        """Overrides that make a run small, and the same each time."""
        fields = {
            "data.name": f"text:{self.path / 'corpus.txt'}",
            "data.dir": self.path / "data",
            "data.window": 32,
            "model.width": 32,
            "model.depth": 2,
            "model.unroll": 1,
            "model.dropout": 0.1,
            "model.block.mixer.slots": 32,
            "train.batch": 8,
            "train.steps": STEPS,
            "train.log_every": 1,
            "train.validate_every": 60,
            "train.validate_first": 0,
            "checkpoint.every": 40,
            "optimizer.learning_rate": 1e-2,
            "optimizer.warmup": 5,
        }
        return tuple(f"--config.{name}={value}" for name, value in fields.items())

    def start(self, name: str, *args: str):
        """A command in a process of its own."""
        return commands.start(name, *args)

    def run(self, name: str, *args: str) -> Result:
        """A command in a process of its own, to its end."""
        return commands.finish(self.start(name, *args))


@dataclasses.dataclass(frozen=True)
class Run:
    """A run and the summary that its command printed."""

    path: pathlib.Path
    summary: dict[str, Any]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return metrics_of(self.path)


def metrics_of(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """One folder of this session for all its test processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def workshop(shared_folder: pathlib.Path) -> Workshop:
    """The folder that all test processes share, with the corpus in it."""
    folder = shared_folder / "workshop"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "corpus.txt").exists():
            (folder / "corpus.txt").write_text(text(600))
    return Workshop(folder)


@pytest.fixture(scope="session")
def trained(workshop: Workshop) -> Run:
    """A run from its first step to its last, made once for all test processes."""
    path, summary = workshop.path / "trained", workshop.path / "summary.json"
    with (workshop.path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not summary.exists():
            result = workshop.run("train", f"--run={path}", *workshop.settings, "--json")
            assert result.code == 0, result.err
            summary.write_text(result.out)
    return Run(path, json.loads(summary.read_text()))


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[None]:
    """Equal runs of a file have the programs of the first of them, which the others then test."""
    from gam_jax.training import beginning, loop, state  # not in processes that only hand out tests
    from gam_jax.training.experiment import run_optimizer

    made: dict[Any, Any] = {}

    def optimizer_of(experiment: Any) -> Any:
        train = experiment.train
        fields = train.steps, train.local, train.bilevel
        key = experiment.model, experiment.optimizer, *fields
        if key not in made:
            made[key] = run_optimizer(experiment)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        for module in (loop, beginning):
            patch.setattr(module, "run_optimizer", optimizer_of)
        for module, name in ((loop, "make_step"), (loop, "make_eval_step"), (state, "make_init")):
            patch.setattr(module, name, functools.cache(getattr(module, name)))
        yield


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """command("train", "--run=...") inside this process."""
    return lambda name, *args: commands.in_process(monkeypatch, capsys, name, *args)
