"""Real processes, joined: what they print, how they end, and that none is left behind."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.guard import Guard
from tests.experiments import commands

JOIN = """
import sys, time, jax
from sharding import processes
processes.emulate_from_environment()
processes.join()
"""
TALK = """
import numpy as np
from jax.experimental import multihost_utils
ranks = multihost_utils.process_allgather(np.asarray(processes.rank()))
print(len(jax.devices()), "devices", ranks.tolist(), processes.agree(processes.rank() == 1))
print("to stderr", file=sys.stderr)
"""


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Starts a job of Python processes; they see the devices that they are told, no others."""
    monkeypatch.setenv("XLA_FLAGS", "")

    def start(script: str, *flags: str):
        command = (sys.executable, "-c", script)
        return commands.start("launch", *flags, "--", *command)

    return start


def wait_for(path: pathlib.Path, seconds: float = 60) -> str:
    """What a file holds, once it holds something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.is_file() and path.read_text().endswith("\n"):
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path} was never written")


def alive(pid: int) -> bool:
    """Whether a process runs (one that has ended but was not waited for does not)."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(*pids: int, seconds: float = 20) -> None:
    """Until none of the processes runs."""
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)


def test_processes_see_each_other_and_each_line_says_whose_it_is(launch):
    result = commands.finish(launch(JOIN + TALK, "--processes=2", "--devices-per-process=2"))
    assert result.code == 0, result.err
    lines = sorted(result.out.splitlines())
    assert lines == ["[0] 4 devices [0, 1] True", "[1] 4 devices [0, 1] True"]
    assert {"[0] to stderr", "[1] to stderr"} <= set(result.err.splitlines())


def test_the_first_that_ends_badly_ends_all_and_gives_its_code(launch):
    script = "import os, time\nif os.environ['JAX_PROCESS_ID'] == '1': os._exit(3)\ntime.sleep(60)"
    start = time.monotonic()
    result = commands.finish(launch(script))
    assert result.code == 3
    assert result.err == "launch: process 1 ended with exit code 3; ending the others\n"
    assert time.monotonic() - start < 30


def test_a_killed_process_is_named_by_its_signal_and_none_is_left(launch, tmp_path):
    script = (
        JOIN + "import os\n"
        f"path = {str(tmp_path)!r} + '/' + str(processes.rank())\n"
        "open(path, 'w').write(str(os.getpid()) + '\\n')\n"
        "processes.barrier('all')\n"
        "time.sleep(60) if processes.rank() else processes.barrier('never')\n"
    )
    job = launch(script, "--devices-per-process=1", "--grace=2")
    pids = [int(wait_for(tmp_path / str(rank))) for rank in range(2)]
    time.sleep(1)
    os.kill(pids[1], signal.SIGKILL)
    start = time.monotonic()
    result = commands.finish(job)
    assert result.code == 128 + signal.SIGKILL
    assert "launch: process 1 was ended by SIGKILL; ending the others" in result.err
    assert time.monotonic() - start < 15
    assert not any(alive(pid) for pid in pids)


@pytest.mark.slow
def test_who_ends_because_it_misses_a_frozen_one_is_not_accused(launch, tmp_path):
    """JAX aborts a process that misses another for long, before the launcher's own limit."""
    script = (
        "import os, pathlib, time\nfrom gam_jax.training.heartbeat import Heartbeat\n"
        f"folder, rank = pathlib.Path({str(tmp_path)!r}), os.environ['JAX_PROCESS_ID']\n"
        "with Heartbeat.from_environment():\n"
        "    (folder / rank).write_text(f'{os.getpid()}\\n')\n"
        "    while rank == '1' or not (folder / 'frozen').exists(): time.sleep(0.1)\n"
        "    time.sleep(6)\n"
        "    os.abort()\n"
    )
    job = launch(script, "--hang=9", "--grace=0")
    pid = int(wait_for(tmp_path / "1"))
    wait_for(tmp_path / "0")
    time.sleep(1)
    os.kill(pid, signal.SIGSTOP)
    (tmp_path / "frozen").touch()
    result = commands.finish(job)
    assert result.code == 124
    assert f"pid {pid}) has given no sign of life for 4.5 s, starting at step 0" in result.err
    assert not alive(pid)


def test_a_signal_is_passed_on_and_the_processes_may_end_well(launch, tmp_path):
    script = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(0)))\n"
        f"path = {str(tmp_path)!r} + '/' + os.environ['JAX_PROCESS_ID']\n"
        "open(path, 'w').write('ready\\n')\n"
        "time.sleep(60)\n"
    )
    job = launch(script)
    for rank in range(2):
        wait_for(tmp_path / str(rank))
    job.send_signal(signal.SIGTERM)
    result = commands.finish(job)
    assert result.code == 0
    assert sorted(result.out.splitlines()) == ["[0] saved", "[1] saved"]


def test_processes_do_not_outlive_a_launcher_that_is_killed(launch, tmp_path):
    """Nor does what they have started."""
    script = (
        "import os, pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"path = pathlib.Path({str(tmp_path)!r}) / os.environ['JAX_PROCESS_ID']\n"
        "path.write_text(f'{os.getpid()} {child.pid}\\n')\n"
        "time.sleep(60)\n"
    )
    job = launch(script)
    pids = [int(pid) for rank in range(2) for pid in wait_for(tmp_path / str(rank)).split()]
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    wait_until_gone(*pids)


def test_who_does_not_want_to_end_is_killed_where_the_launcher_is_gone(tmp_path):
    ready = tmp_path / "ready"
    stubborn = f"trap '' TERM; echo > {ready}; while :; do sleep 0.1; done"
    child = subprocess.Popen(["/bin/sh", "-c", stubborn], start_new_session=True)
    guard = Guard(grace=1).__enter__()
    guard.watch(child.pid)
    wait_for(ready)
    guard._shell.stdin.close()  # as the system does for a process that is killed
    assert child.wait(timeout=20) == -signal.SIGKILL
    guard._shell.wait(timeout=20)


def test_a_launcher_that_ends_well_leaves_its_processes_to_themselves():
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    with Guard(grace=0) as guard:
        guard.watch(child.pid)
    assert guard._shell.returncode == 0
    assert child.poll() is None
    child.kill()
    child.wait()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--processes=0", "--", "true"), "processes"),
        ((), "give the command to run after --"),
        (("--", "no-such-program"), "no program 'no-such-program'"),
        (
            ("--elastic", "--", "gam", "train", "--mesh=data=4", "--mesh=data=2x2"),
            "--mesh=data=2x2: meshes are planned anew with data in one level",
        ),
        (("--elastic", "--", "gam", "train", "--mesh", "data=2x2"), "--mesh=data=2x2: meshes"),
    ],
)
def test_bad_input_is_one_line(command, args, words):
    result = command("launch", *args)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert words in result.err
