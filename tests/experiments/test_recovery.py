"""After a run has gone wrong there is a way on: back, with other settings, or past some data."""

from __future__ import annotations

import json
import math
import re
import shutil

import pytest

from experiments.elastic import once
from experiments.report.markdown import markdown
from experiments.report.page import page
from experiments.report.runs import read_runs
from gam_jax.training.folder import RunFolder
from gam_jax.training.history import read_history
from sharding.checkpoint import Checkpoints
from sharding.checkpoint.__main__ import main as tool
from tests.workshop import metrics_of

pytestmark = pytest.mark.usefixtures("compiled_once")
CONFIG = """
from gam_jax.registry import register
from tests.experiments.own_model import QuarterClassifier, Quarters, get_config

register(Quarters)  # again, since a command may have run their file meanwhile
register(QuarterClassifier)
"""
SETTINGS = {
    "train.steps": 40,
    "optimizer.schedule": "wsd",
    "optimizer.cooldown": 10,
    "checkpoint.keep": 9,
}


def overrides(**fields) -> list[str]:
    """Of the command line; `__` stands for a point."""
    own = {name.replace("__", "."): value for name, value in fields.items()}
    return [f"--config.{name}={value}" for name, value in {**SETTINGS, **own}.items()]


@pytest.fixture
def train(command, workshop):
    """Trains in a folder: train(path, "--resume", train__steps=60)."""
    config = workshop.path / "own_config.py"
    config.write_text(CONFIG)

    def call(path, *flags, **fields):
        run = (f"--config={config}", f"--run={path}", "--mesh=data=1", *overrides(**fields))
        return command("train", *run, *flags)

    return call


@pytest.fixture
def whole(train, workshop):
    """Forty steps without a break: made once, to be copied."""
    path = workshop.path / "recovery"
    if not path.exists():
        assert train(path).code == 0
    return path


@pytest.fixture
def run(whole, tmp_path):
    """A copy of those forty steps."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def rows(path, split="train"):
    return [row for row in metrics_of(path) if row["split"] == split]


def losses(path):
    return [row["loss"] for row in rows(path)]


def names(path):
    return {found.name for found in (path / "checkpoints").iterdir()}


def extra(path, step):
    return Checkpoints(path / "checkpoints", read_only=True).extra(step)


def advice(result) -> list[str]:
    """The flags by which an error says that a run goes on."""
    assert (result.code, len(result.err.splitlines()[-1:])) == (2, 1)
    return re.findall(r"--[a-z][\w.=,-]*[\w]", result.err.splitlines()[-1].split(", or ")[0])


def test_what_is_advised_after_a_divergence_can_be_followed_from_the_start(train, tmp_path):
    """Decay of 100 % at each step, times the rate: at 5 the weights grow fourfold each step."""
    path = tmp_path / "run"
    wild = {"optimizer__weight_decay": 1.0, "optimizer__learning_rate": 5, "train__steps": 30}
    result = train(path, **wild)
    assert "is nan (checkpoint 10 is suspect)" in result.err
    assert "--resume=0" in advice(result)
    result = train(path, *advice(result), **wild)
    assert result.code == 0, result.err
    assert json.loads((path / "config.json").read_text())["optimizer"]["learning_rate"] == 0.5
    assert [began.changed for began in read_history(path / "history.jsonl")] == [
        {},
        {"optimizer.learning_rate": [5.0, 0.5]},
    ]
    assert len(losses(path)) == 30
    assert all(map(math.isfinite, losses(path)))
    assert (path / "metrics.jsonl.aside").is_file()
    assert "10.aside" in names(path)


def test_a_divergence_leaves_a_good_checkpoint_and_advice_that_goes_on_from_it(train, run):
    wild = {"optimizer__weight_decay": 0.1, "optimizer__learning_rate": 500, "checkpoint__keep": 1}
    change = "--change=optimizer.learning_rate,train.steps"
    result = train(run, "--resume", change, **wild, train__steps=60, checkpoint__every=4)
    assert re.search(r"checkpoint 4\d is suspect: the gradient norm of step 4\d was ", result.err)
    assert "(checkpoint 40 is kept)" in result.err
    assert "--resume=latest-good --skip=" in result.err
    found = Checkpoints(run / "checkpoints", read_only=True)
    assert found.choose("latest-good") == 40
    assert found.latest() > 40
    assert found.choose("best") <= 40
    result = train(
        run, *advice(result), **{**wild, "optimizer__learning_rate": 0.01}, train__steps=60
    )
    assert "is suspect" in result.err
    assert "going on from checkpoint 40" in result.err


def test_a_state_that_is_not_finite_is_never_saved(train, tmp_path):
    """Squares of gradients overflow, in their norm and in Adam's moments, before any loss does."""
    wild = {"optimizer__weight_decay": 1.0, "optimizer__learning_rate": 10, "optimizer__clip": 0}
    path = tmp_path / "run"
    result = train(path, **wild, checkpoint__every=1)
    assert result.code == 2
    assert "step 10 is not saved: its gradient norm is inf; training goes on" in result.err
    assert max(map(int, names(path))) == 9
    assert all(map(math.isfinite, extra(path, 9)["gradient_norms"]))
    result = train(path, "--resume", **wild, train__stop_at=10)
    assert "is not saved" in result.err.splitlines()[-1]
    assert result.code == 2


def test_a_validation_that_is_no_number_is_advised_on_too(train, run):
    """The rate of the last step before it is so high that the model overflows."""
    wild = {"optimizer__learning_rate": 1e30, "optimizer__schedule": "constant"}
    change = "--change=optimizer.learning_rate,optimizer.schedule,train.steps"
    result = train(run, "--resume", change, **wild, train__steps=41)
    assert "error: after step 41 the loss of validation batch 0" in result.err
    assert "(checkpoint 40 is kept): go on at a lower rate by --resume=latest-good" in result.err
    assert names(run) == {"10", "20", "30", "40"}


@pytest.mark.parametrize("which", ["20", "best"])
def test_going_back_loses_nothing_and_ends_the_same_bit_for_bit(train, whole, run, which):
    step = Checkpoints(run / "checkpoints", read_only=True).choose(which)
    later = {name for name in names(whole) if int(name) > step}
    result = train(run, f"--resume={which}")
    assert result.code == 0, result.err
    assert tool(["diff", str(whole), str(run)]) == 0
    assert losses(run) == losses(whole)
    assert names(run) == names(whole) | {f"{name}.aside" for name in later}
    aside = run / "metrics.jsonl.aside"
    moved = aside.read_text() if aside.exists() else ""
    old = (whole / "metrics.jsonl").read_text()
    assert (
        "".join(line for line in old.splitlines(True) if json.loads(line)["step"] > step) == moved
    )
    began = read_history(run / "history.jsonl")[-1]
    assert (began.step, began.which, {*began.aside}) == (step, which, names(run) - names(whole))


def test_a_stable_phase_is_made_longer_by_more_steps(train, whole, run):
    result = train(run, "--resume=20", "--change=train.steps", train__steps=60)
    assert "from step 20: train.steps: 40 -> 60" in result.err
    assert "learning rate of step 20: 0.01 -> 0.01" in result.err
    rates = [row["learning_rate"] for row in rows(run)]
    old = [row["learning_rate"] for row in rows(whole)]
    assert rates[:30] == old[:30]
    assert rates[5:51] == [rates[5]] * 46
    assert rates[-1] < old[31] < rates[50]
    result = train(run, "--resume", train__steps=60)  # the configuration is the new one now
    assert result.code == 0, result.err


def test_batches_that_are_skipped_move_the_data_by_so_many(train, run, tmp_path):
    result = train(run, "--resume=20", "--skip=3")
    assert result.code == 0, result.err
    assert [extra(run, step)["position"] for step in (20, 30, 40)] == [20, 33, 43]
    assert read_history(run / "history.jsonl")[-1].skipped == 3
    shutil.copytree(run, tmp_path / "killed")
    for step in (30, 40):  # as one that was killed before it saved
        shutil.rmtree(tmp_path / "killed" / "checkpoints" / str(step))
    result = train(tmp_path / "killed", "--resume")
    assert "from step 20: 3 batches skipped" in result.err
    assert tool(["diff", str(run), str(tmp_path / "killed")]) == 0
    assert losses(tmp_path / "killed") == losses(run)


def test_the_place_in_the_data_is_kept_in_rows_when_the_batch_changes(train, run):
    fields = {"train__batch": 32, "train__accumulate": 2, "model__width": 8}
    result = train(run, "--resume=20", "--change=train.batch,train.accumulate", **fields)
    assert result.code == 0, result.err
    assert [extra(run, step)["position"] for step in (20, 30, 40)] == [20, 20, 30]
    result = train(run, "--resume=20", "--change=train.batch", **fields | {"train__batch": 24})
    assert "train.batch: 32 -> 24; 16 rows left out" in result.err
    assert extra(run, 30)["position"] == 24
    report = tool_report(run)
    assert "| 20 |" in report
    assert "train.batch: 16 -\\> 32" in report
    assert f"{20 * 16 + 20 * 24}" in report.replace(",", "")


def tool_report(path) -> str:
    """The report of a run, as Markdown."""
    runs = read_runs([str(path)])
    assert "What changed on the way" in page(runs, "")
    return markdown(runs, "")


def test_a_field_that_is_named_and_stays_changes_nothing(train, run):
    before = (run / "config.json").read_text()
    result = train(run, "--resume", "--change=train.steps,optimizer.clip")
    assert result.code == 0, result.err
    assert (run / "config.json").read_text() == before
    assert names(run) == {"10", "20", "30", "40"}
    assert not read_history(run / "history.jsonl")[-1].told()


BAD = {
    "no name": (["--resume"], {"train__steps": 60}, "allow it by --change=train.steps, or"),
    "another name": (
        ["--resume", "--change=train.batch"],
        {"train__steps": 60},
        "train.steps: 40 -> 60",
    ),
    "what may not": (["--resume", "--change=model.width"], {}, "--change=model.width: it decides"),
    "what is not": (["--resume", "--change=train.step"], {}, "did you mean 'train.steps'"),
    "one may, one not": (
        ["--resume", "--change=train.steps"],
        {"train__steps": 60, "optimizer__beta1": 0.5},
        "(optimizer.beta1: 0.9 -> 0.5): resume with its own settings, or",
    ),
    "a change of nothing": (["--change=train.steps"], {}, "already holds a run"),
    "a step that is not there": (["--resume=25"], {}, "or one of [10, 20, 30, 40]"),
    "a word that is none": (["--resume=newest"], {}, "latest, latest-good, best or a step"),
    "a negative step": (["--resume=-20"], {}, "latest, latest-good, best or a step"),
    "batches below 0": (["--resume", "--skip=-1"], {}, "skip"),
    "an end before the checkpoint": (
        ["--resume", "--change=train.steps"],
        {"train__steps": 30},
        "train.steps=30 lies before checkpoint 40",
    ),
}


@pytest.mark.parametrize(("flags", "fields", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(train, whole, flags, fields, words):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    result = train(whole, *flags, **fields)
    said = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert (result.code, len(said)) == (2, 1)
    assert words in said[0]
    after = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize("flag", ["--change=train.steps", "--skip=3"])
def test_a_run_that_does_not_go_on_changes_and_skips_nothing(train, tmp_path, flag):
    result = train(tmp_path / "new", flag)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "add --resume" in result.err
    assert not (tmp_path / "new").exists()


def test_a_folder_whose_configuration_never_ran_is_begun_anew(train, tmp_path):
    """A run that fails after its folder was begun, here since its log cannot be written."""
    path = tmp_path / "run"
    path.mkdir()
    short = {"train__steps": 12, "optimizer__warmup": 0.1}
    assert train(path, **short, train__stop_at=1).code == 0
    shutil.rmtree(path / "checkpoints")
    for name in ("metrics.jsonl", "curves.png"):
        (path / name).unlink()
    (path / "metrics.jsonl").mkdir()
    for leftover in ("init.json", "baselines.json"):
        (path / leftover).write_text("{}")
    result = train(path, **short, train__seed=4)
    assert result.code == 2
    (path / "metrics.jsonl").rmdir()
    for flags in ((), ("--resume",)):
        assert not RunFolder(path).ran()
        result = train(path, *flags, **short, train__seed=5, train__stop_at=2)
        assert result.code == 0, result.err
        assert "holds a configuration that never ran: begun anew" in result.err
        assert json.loads((path / "config.json").read_text())["train"]["seed"] == 5
        assert len(read_history(path / "history.jsonl")) == 1
        assert not (path / "init.json").exists()
        assert "already holds a run" in train(path, **short).err
        shutil.rmtree(path / "checkpoints")
        (path / "metrics.jsonl").unlink()


def test_a_picture_that_cannot_be_written_ends_nothing(train, whole, run):
    (run / "curves.png").unlink()
    (run / "curves.png.partial").mkdir()
    result = train(run, "--resume")
    assert result.code == 0, result.err
    assert "no picture of the run" in result.err


def test_a_restart_of_what_is_left_does_not_skip_again():
    command = ["gam", "train", "--skip=3", "--resume=20", "--skip", "4", "--run", "skip", "-skip=1"]
    assert once(command) == ["gam", "train", "--resume=20", "--run", "skip"]
