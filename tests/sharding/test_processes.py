"""Alone, a process asks nobody; variables that make no sense are refused by name."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import jax
import pytest

from sharding import processes
from sharding.errors import UserError


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    names = (
        processes.ADDRESS,
        processes.COUNT,
        processes.SECONDS,
        processes.RANK,
        processes.EMULATE,
    )
    for name in (*names, "SLURM_NTASKS", "SLURM_STEP_NODELIST", processes.JOIN):
        monkeypatch.delenv(name, raising=False)


def test_alone_nobody_is_joined():
    processes.join()
    assert not jax.distributed.is_initialized()
    assert (processes.rank(), processes.count(), processes.is_first()) == (0, 1, True)
    assert processes.agree(True)
    assert not processes.agree(False)
    processes.barrier("here")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"COUNT": "2", "RANK": "0"}, "JAX_COORDINATOR_ADDRESS is not"),
        ({"ADDRESS": "localhost:1", "COUNT": "two", "RANK": "0"}, "JAX_NUM_PROCESSES='two'"),
        ({"ADDRESS": "localhost:1", "COUNT": "2"}, "JAX_PROCESS_ID=''"),
        ({"ADDRESS": "localhost:1", "COUNT": "2", "RANK": "2"}, "numbered from 0"),
        ({"ADDRESS": "localhost:1", "COUNT": "2", "RANK": "-1"}, "JAX_PROCESS_ID='-1'"),
        ({"ADDRESS": "localhost:1", "COUNT": "2", "RANK": "²"}, "JAX_PROCESS_ID='²'"),
        ({"ADDRESS": "localhost:1", "COUNT": 30 * "9", "RANK": "0"}, "JAX_NUM_PROCESSES='99"),
        ({"ADDRESS": "localhost", "COUNT": "2", "RANK": "0"}, "write it as host:port"),
        ({"ADDRESS": "localhost", "COUNT": "2", "RANK": "1"}, "write it as host:port"),
        ({"ADDRESS": "localhost:1", "COUNT": "2", "RANK": "0", "SECONDS": "soon"}, "JOIN_SECONDS"),
    ],
)
def test_variables_that_make_no_sense_are_named(monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(getattr(processes, name), value)
    with pytest.raises(UserError, match=words):
        processes.join()


@pytest.mark.parametrize(
    ("rank", "words"), [("0", "process 1 has not come"), ("1", "process 0 does not answer at ")]
)
def test_a_process_that_does_not_come_is_named(rank, words, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    values = {"ADDRESS": address, "COUNT": "2", "RANK": rank, "SECONDS": "1"}
    for name, value in values.items():
        monkeypatch.setenv(getattr(processes, name), value)
    with pytest.raises(UserError, match=words):
        processes.join()


def test_one_process_of_one_is_alone(monkeypatch):
    values = {processes.ADDRESS: "localhost:1", processes.COUNT: "1", processes.RANK: "0"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    processes.join()
    assert not jax.distributed.is_initialized()


def test_devices_that_are_there_already_can_be_asked_for_again():
    processes.emulate(len(jax.devices()))
    with pytest.raises(UserError, match="cannot emulate 3 devices: this process already uses 8"):
        processes.emulate(3)


def without_threads_said(*command):
    """A process whose environment says nothing of threads."""
    left = {name: value for name, value in os.environ.items() if name != processes.THREADS}
    return subprocess.run(
        [sys.executable, *command], env=left, capture_output=True, text=True, timeout=120
    )


def test_emulated_devices_have_threads_unless_their_number_was_said(monkeypatch):
    says = "import os; from sharding.processes import emulate; emulate(8); print(os.environ['{}'])"
    assert without_threads_said("-c", says.format(processes.THREADS)).stdout == "32\n"


@pytest.mark.slow
def test_a_step_over_eight_emulated_devices_ends():
    """It waits in several sums at a time: with a thread a device, a signal ends it after 40 s."""
    found = without_threads_said("-m", "experiments.benchmark", "long", "--short", "--repeats=1")
    assert found.returncode == 0
    assert "16,384 tokens, seq=8" in found.stdout


def test_emulation_is_asked_for_by_a_variable(monkeypatch):
    processes.emulate_from_environment()
    monkeypatch.setenv(processes.EMULATE, "none")
    with pytest.raises(UserError, match="GAM_JAX_EMULATE='none'"):
        processes.emulate_from_environment()
