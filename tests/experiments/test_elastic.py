"""Real processes that are lost: the run goes on with those that are left, and is the same run."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import sys
import time
import types

import numpy as np
import pytest

from gam_jax.training.heartbeat import read_beats
from gam_jax.training.metrics import read_metrics
from tests.experiments import commands
from tests.workshop import STEPS, metrics_of


def losses(rows, last=STEPS):
    """Training and validation losses up to a step."""
    return {
        (row["step"], row["split"]): row["loss"]
        for row in rows
        if row["step"] <= last and row["split"] in ("train", "validation")
    }


def assert_same_run(rows, trained, last=STEPS, stops=()):
    """The losses of the uninterrupted run of one device, to 1e-5."""
    found, wanted = losses(rows, last), losses(trained.metrics, last)
    # A run that is told to stop early has one validation more, there.
    ends = {(step, "validation") for step in (last, *stops)}
    assert found.keys() - ends == wanted.keys() - ends
    assert len(found) >= last
    both = sorted(found.keys() & wanted.keys())
    np.testing.assert_allclose([found[k] for k in both], [wanted[k] for k in both], rtol=1e-5)


def strike(job, temporary: pathlib.Path, run: pathlib.Path, rank: int, number: int, step: int):
    """Sends a signal to the process of that rank once the run has come to that step."""
    deadline = time.monotonic() + 200
    while max((row["step"] for row in read_metrics(run / "metrics.jsonl")), default=0) < step:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (folder,) = temporary.glob("gam_jax_launch_*")
    os.kill(read_beats(folder)[rank].pid, number)


KILLED, FROZEN = "was ended by SIGKILL", "has given no sign of life for 6 s"
"""That a frozen process is told from the others is always tested in test_launch.py."""


@pytest.fixture
def job(workshop, tmp_path, monkeypatch):
    """Launches a training job whose launcher keeps its temporary files in `tmp_path`."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))

    def start(*flags: str, train: tuple[str, ...] = (sys.executable, "-m", "experiments.train")):
        return workshop.start(
            "launch",
            *(flag for flag in flags if not flag.startswith(("--config", "--mesh"))),
            "--",
            *(*train, f"--run={tmp_path / 'run'}", *workshop.settings, "--json"),
            *(flag for flag in flags if flag.startswith(("--config", "--mesh"))),
        )

    return start


@pytest.mark.parametrize(
    ("number", "what", "step", "stop"),
    [
        (signal.SIGKILL, KILLED, 12, 20),
        pytest.param(signal.SIGSTOP, FROZEN, 12, 20, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, KILLED, 30, STEPS, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, FROZEN, 30, STEPS, marks=pytest.mark.slow),
    ],
)
def test_a_lost_process_is_named_and_the_run_goes_on_without_it(
    job, workshop, trained, tmp_path, number, what, step, stop
):
    launched = job(
        *("--processes=2", "--devices-per-process=2", "--elastic", "--hang=6"),
        *("--mesh=data=2,tensor=2", "--config.checkpoint.every=10"),
        f"--config.train.stop_at={stop}",
    )
    strike(launched, tmp_path / "temporary", tmp_path / "run", 1, number, step=step)
    result = commands.finish(launched)
    assert result.code == 0, result.err
    said = [line for line in result.err.splitlines() if line.startswith("launch: ")]
    assert len(said) == 2, result.err
    host = os.uname().nodename
    assert said[0].startswith(f"launch: process 1 ({host}, pid ")
    assert what in said[0]
    assert said[1] == (
        "launch: restart 1 of 3: 1 process of 2 devices, mesh data=1,seq=1,tensor=2, from the "
        "newest checkpoint"
    )
    assert json.loads(result.out.splitlines()[-1].removeprefix("[0] "))["step"] == stop
    assert_same_run(metrics_of(tmp_path / "run"), trained, last=stop)
    assert list((tmp_path / "temporary").iterdir()) == []


EIGHT, TWO = "data=2,seq=2,tensor=2", "seq=2"


@pytest.mark.parametrize(
    ("meshes", "killed", "stop"),
    [
        pytest.param((EIGHT,), 12, 20, marks=pytest.mark.slow),
        pytest.param((EIGHT, TWO), 62, 80, marks=pytest.mark.slow),
    ],
)
def test_a_run_of_two_times_four_devices_is_killed_and_goes_on_on_eight_and_on_two(
    job, workshop, trained, tmp_path, meshes, killed, stop
):
    launched = job(
        *("--processes=2", "--devices-per-process=4", f"--config.checkpoint.every={stop // 4}"),
        *("--mesh=data=4,tensor=2", "--config.parallel.preset=fully_sharded+tensor"),
    )
    strike(launched, tmp_path / "temporary", tmp_path / "run", 0, signal.SIGKILL, step=killed)
    result = commands.finish(launched)
    assert result.code == 128 + signal.SIGKILL
    for mesh in meshes:
        run = tmp_path / mesh
        shutil.copytree(tmp_path / "run", run)
        devices = "--emulate=8" if mesh == EIGHT else "--emulate=2"
        preset = "--config.parallel.preset=zero1+sequence+tensor"
        end = f"--config.train.stop_at={stop}"
        resumed = workshop.run(
            "train", f"--run={run}", "--resume", devices, f"--mesh={mesh}", preset, end
        )
        assert resumed.code == 0, resumed.err
        assert f"taking over {run} from process " in resumed.err
        assert_same_run(metrics_of(run), trained, last=stop)


PARTS = ("--config.model.depth=4", "--config.train.batch=16", "--config.train.accumulate=4")
TURNS = ("--config.parallel.schedule=interleaved", "--config.parallel.turns=2")


@pytest.mark.slow
def test_a_run_in_stages_is_killed_and_goes_on_in_others_and_in_none(job, workshop, tmp_path):
    """Two processes, a stage each; then without stages, and with other stages on the way."""

    def trains(run, stop, *flags):
        end = (f"--config.train.stop_at={stop}", "--config.checkpoint.every=5")
        result = workshop.run("train", f"--run={run}", *flags, *end)
        assert result.code == 0, result.err

    trains(tmp_path / "whole", 20, "--emulate=1", *workshop.settings, *PARTS)
    whole = types.SimpleNamespace(metrics=metrics_of(tmp_path / "whole"))
    launched = job(
        *("--processes=2", "--devices-per-process=1", "--config.checkpoint.every=5"),
        *("--mesh=pipe=2", *PARTS),
    )
    strike(launched, tmp_path / "temporary", tmp_path / "run", 0, signal.SIGKILL, step=12)
    assert commands.finish(launched).code == 128 + signal.SIGKILL
    ways = {
        "none": [(20, "data=4", ())],
        "more": [(20, "pipe=4", TURNS[:1])],
        "turns, then none": [(15, "pipe=2", TURNS), (20, "data=4", ())],
    }
    for name, way in ways.items():
        run = tmp_path / name
        shutil.copytree(tmp_path / "run", run)
        for stop, mesh, flags in way:
            plain = flags or ("--config.parallel.schedule=1f1b", "--config.parallel.turns=1")
            trains(run, stop, "--resume", "--emulate=4", f"--mesh={mesh}", *plain)
        assert_same_run(metrics_of(run), whole, last=20, stops=[stop for stop, *_ in way])


SLOW = """
import os, sys, time
from experiments import cli, train
from gam_jax.training import batches
if os.environ["JAX_PROCESS_ID"] == "1":
    quick = batches.TrainFeed.__next__
    batches.TrainFeed.__next__ = lambda self: (time.sleep(0.15), quick(self))[1]
sys.argv[0] = "train"
cli.run(train.main, train.define_flags)
"""


@pytest.mark.slow  # who is slow is always told from measured times, in test_hangs.py
def test_a_slow_process_is_reported_in_the_log_and_in_metrics(job, trained, tmp_path):
    """Its data come late; all steps take equally long, so only its own work tells."""
    launched = job(
        *("--devices-per-process=1", "--config.train.stop_at=50", "--config.train.straggler=1.5"),
        train=(sys.executable, "-c", SLOW),
    )
    result = commands.finish(launched)
    assert result.code == 0, result.err
    rows = [row for row in metrics_of(tmp_path / "run") if row["split"] == "straggler"]
    assert rows
    assert {row["rank"] for row in rows} == {1}
    for row in rows:
        assert row["seconds"] >= 0.15
        assert row["ratio"] == pytest.approx(row["seconds"] / row["median"])
        assert row["ratio"] >= 1.5
    line = f"process 1 ({os.uname().nodename}) is slow: "
    assert line in result.err
    assert json.loads(result.out.splitlines()[-1].removeprefix("[0] "))["step"] == 50
    assert_same_run(metrics_of(tmp_path / "run"), trained, last=50)


FAIL = "import os, signal, sys\n"


@pytest.mark.parametrize(
    ("args", "script", "code", "words"),
    [
        ((), FAIL + "sys.exit(2)", 2, "process 0 ended with exit code 2; ending the others"),
        pytest.param(
            *((), FAIL + "sys.exit(1)", 1, "giving up: no process said how many devices it has"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--max-restarts=0",),
            FAIL + "sys.exit(3)",
            3,
            "giving up after 0 restarts (--max-restarts)",
            marks=pytest.mark.slow,
        ),
        (
            ("--devices-per-process=2", "--min-devices=3"),
            FAIL + 'print(\'{"mesh": "data=2", "processes": 1, "devices": 2}\')\nsys.exit(3)',
            3,
            "giving up: 2 devices are left, of which this run can use 2, below --min-devices=3",
        ),
        pytest.param(
            ("--devices-per-process=2",),
            FAIL + "print('no room', file=sys.stderr)\nsys.exit(3)",
            3,
            "giving up, no plan for 1 process of 2 devices: no room",
            marks=pytest.mark.slow,
        ),
        (
            ("--devices-per-process=2", "--processes=1"),
            FAIL + "os.kill(os.getpid(), signal.SIGKILL)",
            137,
            "giving up: no process is left",
        ),
    ],
)
def test_it_gives_up_with_one_line_and_the_code_of_what_died(tmp_path, args, script, code, words):
    """The command here is a few lines of Python: they fail at once, or print a plan."""
    script += "\n# experiments.train"
    job = commands.start("launch", "--elastic", *args, "--", sys.executable, "-c", script)
    result = commands.finish(job)
    assert result.code == code
    said = [line for line in result.err.splitlines() if line.startswith("launch: ")]
    assert words in said[-1]


def test_restarts_are_counted_and_keep_the_places_of_those_that_are_left(tmp_path):
    script = (
        "import json, os, signal, sys, time\n"
        "if plan := [a for a in sys.argv if a.startswith('--plan=')]:\n"
        "    count = int(plan[0][7:].split('x')[0])\n"
        "    print(json.dumps({'mesh': f'data={count}', 'processes': count, 'devices': 1}))\n"
        "    sys.exit()\n"
        "count, rank = int(os.environ['JAX_NUM_PROCESSES']), int(os.environ['JAX_PROCESS_ID'])\n"
        "print('at', os.environ['GAM_JAX_SLOT'], *sys.argv[2:], flush=True)\n"
        "time.sleep(0.5)\n"
        "if rank == min(1, count - 1): os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(60)\n"
    )
    flags = ("--processes=4", "--devices-per-process=1", "--elastic", "--max-restarts=2")
    command = (sys.executable, "-c", script, "experiments.train")
    result = commands.finish(commands.start("launch", *flags, "--", *command))
    assert result.code == 128 + signal.SIGKILL
    told = result.out.splitlines()
    resumed = "--resume --mesh=data={} --across="
    assert sorted(told[:4]) == [f"[{rank}] at {rank}" for rank in range(4)]
    assert sorted(told[4:7]) == [
        f"[{r}] at {s} {resumed.format(3)}" for r, s in enumerate((0, 2, 3))
    ]
    assert sorted(told[7:]) == [f"[{r}] at {s} {resumed.format(2)}" for r, s in enumerate((0, 3))]
    said = [line for line in result.err.splitlines() if line.startswith("launch: ")]
    assert said[-1] == "launch: giving up after 2 restarts (--max-restarts)"
    assert [line[:26] for line in said if "restart " in line] == [
        "launch: restart 1 of 2: 3 ",
        "launch: restart 2 of 2: 2 ",
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--elastic", "--", "true"), "give it gam train"),
        (("--min-devices=0", "--", "true"), "min_devices"),
        (("--hang=-1", "--", "true"), "hang"),
    ],
)
def test_bad_flags_are_one_line(command, args, words):
    result = command("launch", *args)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert words in result.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--plan=4",), "--plan=4: write processes x devices of each, as 2x4"),
        (("--plan=0x4",), "none are left to plan for"),
        (("--config.train.straggler=0.5",), "train.straggler=0.5: give more than 1"),
    ],
)
def test_bad_plans_are_one_line(command, workshop, tmp_path, args, words):
    result = command("train", f"--run={tmp_path / 'run'}", *workshop.settings, *args)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert words in result.err
    assert not (tmp_path / "run").exists()


def test_a_plan_of_a_run_keeps_what_it_can_of_the_mesh(command, workshop, tmp_path):
    plan = ("--mesh=data=8,tensor=2", "--plan=4x2")
    result = command("train", f"--run={tmp_path / 'run'}", *workshop.settings, *plan)
    assert result.code == 0
    assert json.loads(result.out) == {
        "mesh": "data=4,seq=1,tensor=2",
        "processes": 4,
        "devices": 2,
    }
