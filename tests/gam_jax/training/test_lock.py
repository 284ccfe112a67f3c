"""One run folder is of one run: others are refused, and dead owners give way."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import resource
import subprocess
import sys
import threading
import time

import pytest

from gam_jax.training import lock
from gam_jax.training.lock import Owner, run_lock
from sharding.errors import UserError
from tests.experiments import commands

QUICK = {"silent_seconds": 0.4, "touch_seconds": 0.05}


@pytest.fixture
def said():
    return []


@pytest.fixture
def hold(tmp_path, said):
    """Enters the lock of `tmp_path / "run"`."""
    return lambda **options: run_lock(tmp_path / "run", said.append, **(QUICK | options))


def write_lock(folder, **fields):
    """A lock as another process would have left it."""
    (folder / "run").mkdir(exist_ok=True)
    owner = dataclasses.replace(Owner.this(), **fields)
    (folder / "run" / "run.lock").write_text(json.dumps(dataclasses.asdict(owner)) + "\n")
    return folder / "run" / "run.lock"


def ended_process() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_a_second_run_is_refused_and_told_by_whom_and_since_when(hold):
    with hold():
        time.sleep(1.1)
        refused = rf"in use by process {os.getpid()} on \S+ \(for [1-9] s\): .* --run"
        with pytest.raises(UserError, match=refused), hold():
            pass
    with hold():
        pass


def test_hours_are_told_as_hours():
    owner = dataclasses.replace(Owner.this(), since=time.time() - 7300, host="far", pid=7)
    assert str(owner) == "process 7 on far (for 2 h 1 min)"


def test_a_lock_leaves_nothing_behind(tmp_path, hold):
    with hold():
        assert (tmp_path / "run" / "run.lock").is_file()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run").mkdir()
    with hold():
        (tmp_path / "run" / "config.json").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


@pytest.mark.parametrize("fields", ["ended", "number used again"])
def test_a_dead_owner_on_this_host_gives_way_at_once_and_a_line_says_so(
    tmp_path, hold, said, fields
):
    pid = ended_process() if fields == "ended" else os.getpid()
    write_lock(tmp_path, pid=pid, born="1")
    start = time.monotonic()
    with hold(silent_seconds=60):
        assert time.monotonic() - start < 5
    (line,) = said
    assert line.startswith(f"taking over {tmp_path / 'run'} from process {pid} on ")
    assert line.endswith("which is gone")


def test_an_owner_on_another_host_gives_way_only_if_it_shows_no_sign_of_life(tmp_path, hold, said):
    found = write_lock(tmp_path, place="elsewhere", host="node7")
    start = time.monotonic()
    with hold():
        assert time.monotonic() - start >= QUICK["silent_seconds"]
    assert "if there is no sign of life for" in said[0]
    assert said[1].startswith(f"taking over {tmp_path / 'run'} from process ")
    assert "on node7" in said[1]

    write_lock(tmp_path, place="elsewhere", host="node7")
    ended = threading.Event()

    def live():
        while not ended.wait(0.05):
            os.utime(found)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(UserError, match=r"in use by process \d+ on node7"), hold():
            pass
    finally:
        ended.set()
        thread.join()


def test_a_lock_that_names_nobody_gives_way_in_the_same_way(tmp_path, hold, said):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").touch()  # its owner was killed as it began to write
    with hold():
        pass
    assert "a process that did not say who it is: no sign of life" in said[-1]


def test_an_empty_lock_costs_seconds_and_one_that_is_filled_meanwhile_is_respected(
    tmp_path, hold, said, monkeypatch
):
    monkeypatch.setattr(lock, "EMPTY_SECONDS", 0.2)
    write_lock(tmp_path).write_text("")
    start = time.monotonic()
    with hold(silent_seconds=60):
        assert time.monotonic() - start < 5
    assert "no sign of life" in said[-1]
    write_lock(tmp_path).write_text("")
    monkeypatch.setattr(time, "sleep", lambda _: write_lock(tmp_path, place="far", host="node7"))
    with pytest.raises(UserError, match="on node7"), hold(silent_seconds=60):
        pass


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_disk_without_room_leaves_no_lock(tmp_path, hold, monkeypatch, links):
    if not links:

        def link(*_):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", link)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(UserError, match="cannot write the run folder"), hold():
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(tmp_path.rglob("run.lock*"))
    with hold():
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.lock"]


def test_of_many_that_find_a_dead_owner_at_once_one_gets_the_lock(tmp_path, hold):
    for _ in range(10):
        write_lock(tmp_path, pid=ended_process())
        begin, end = threading.Barrier(9), threading.Event()
        results = []

        def try_it(begin=begin, end=end, results=results):
            begin.wait()
            try:
                with hold():
                    results.append("held")
                    end.wait(30)
            except UserError:
                results.append("refused")

        threads = [threading.Thread(target=try_it) for _ in range(8)]
        for thread in threads:
            thread.start()
        begin.wait()
        deadline = time.monotonic() + 30
        while len(results) < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        end.set()
        for thread in threads:
            thread.join()
        assert sorted(results) == ["held"] + ["refused"] * 7


def test_an_owner_that_was_taken_for_dead_ends_when_it_wakes_up(tmp_path):
    script = (
        "import pathlib, sys, time\nfrom gam_jax.training.lock import run_lock\n"
        "with run_lock(pathlib.Path(sys.argv[1]), print, touch_seconds=0.1):\n"
        "    print('held', flush=True)\n    time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        cwd=commands.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    write_lock(tmp_path, place="elsewhere", host="node7")
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert f"error: {tmp_path / 'run'} was taken over by process {os.getpid()} on node7" in err
    assert (tmp_path / "run" / "run.lock").is_file()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, said):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="cannot write the run folder"),
        run_lock(tmp_path / "file" / "run", said.append),
    ):
        pass


@pytest.mark.slow
def test_processes_of_a_job_are_refused_alike(workshop, hold, tmp_path):
    run = tmp_path / "run"
    train = (sys.executable, "-m", "experiments.train", f"--run={run}", *workshop.settings)
    with hold(touch_seconds=1):
        job = workshop.start("launch", "--devices-per-process=1", "--", *train, "--resume")
        result = commands.finish(job)
    assert result.code == 2
    lines = [line for line in result.err.splitlines() if "error: " in line]
    assert len(lines) == 2
    assert {line[:3] for line in lines} == {"[0]", "[1]"}
    for line in lines:
        assert f"{run} is in use by process {os.getpid()} on " in line
    with contextlib.suppress(FileNotFoundError):
        assert list(run.iterdir()) == []
