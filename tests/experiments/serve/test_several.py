"""A server of two real processes: it writes what one writes, and ends when one of them does."""

from __future__ import annotations

import concurrent.futures
import contextlib
import signal
import subprocess
import threading

import httpx
import pytest

from experiments.launch import free_port
from sharding import processes
from tests.experiments import commands
from tests.experiments.serve.test_process import wait
from tests.experiments.serve.test_server import answer, drawn_bodies


@contextlib.contextmanager
def two(run, monkeypatch, *flags):
    """Two processes of one job, the address at which the first listens, and what each says."""
    monkeypatch.setenv(processes.ADDRESS, f"localhost:{free_port()}")
    monkeypatch.setenv(processes.COUNT, "2")
    started: list[subprocess.Popen[str]] = []
    try:
        for rank in range(2):
            monkeypatch.setenv(processes.RANK, str(rank))
            args = (f"--run=small={run.path}", "--port=0", "--rows=4", *flags)
            started.append(commands.start("serve", *args))
        out = started[0].stdout
        assert out is not None
        url = next(line for line in out if line.startswith("http")).strip().rstrip("/")
        wait(url, "ok")
        yield url, started
    finally:
        for process in started:
            process.kill()


def choices(url, body):
    found = httpx.post(f"{url}/v1/completions", json=body, timeout=120)
    assert found.status_code == 200, found.text
    return [(one["text"], one["finish_reason"]) for one in found.json()["choices"]]


def unanswered(url, body):
    with pytest.raises(httpx.TransportError):
        choices(url, body)


@pytest.mark.parametrize("count", [16, pytest.param(200, marks=pytest.mark.slow)])
def test_two_processes_write_what_one_does(trained, server, monkeypatch, count):
    """Then one of them dies: the other says so, and ends with 1."""
    bodies = list(drawn_bodies(count))
    wanted = [
        [(one["text"], one["finish_reason"]) for one in answer(server, **body)["choices"]]
        for body in bodies
    ]
    flags = ("--block=4", "--draft=ngram") if count > 16 else ()
    with two(trained, monkeypatch, *flags) as (url, (first, other)):
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda body: choices(url, body), bodies))
        assert found == wanted
        other.kill()
        result = commands.finish(first)
        assert result.code == 1
        assert "error: the engine failed: process 1 of this job is gone" in result.err
        assert "Traceback" not in result.err


@pytest.mark.slow
def test_a_drafter_beside_the_model_guesses_in_two_processes(
    trained, workshop, server, monkeypatch, tmp_path
):
    """A model and a drafter that `gam draft semi` has trained, over the channels of both."""
    out = tmp_path / "semi"
    args = (f"--run={trained.path}", f"--out={out}", "--steps=4", "--ahead=2")
    done = workshop.run("draft", "semi", *args)
    assert done.code == 0, done.err
    assert "are the ideal of 15 guesses" in done.out
    bodies = list(drawn_bodies(12))
    wanted = [
        [(one["text"], one["finish_reason"]) for one in answer(server, **body)["choices"]]
        for body in bodies
    ]
    flags = ("--mesh=tensor=2", "--block=4", f"--draft=semi:{out}")
    with two(trained, monkeypatch, *flags) as (url, started):
        assert [choices(url, body) for body in bodies] == wanted
        told = httpx.get(f"{url}/metrics").text
        assert "gam_tokens_a_pass{" in told
        assert "gam_ideal_tokens_a_pass{" in told
        started[0].send_signal(signal.SIGTERM)
        result = commands.finish(started[0])
        assert result.code == 0
        assert "are the ideal of 3 guesses" in result.err


@pytest.mark.slow
def test_models_come_and_go_in_two_processes_alike(trained, server, monkeypatch):
    bodies = list(drawn_bodies(12))
    wanted = [
        [(one["text"], one["finish_reason"]) for one in answer(server, **body)["choices"]]
        for body in bodies
    ]
    flags = (f"--run=other={trained.path}", "--loaded=1", "--mesh=tensor=2")
    with two(trained, monkeypatch, *flags) as (url, _):
        for number, (body, text) in enumerate(zip(bodies, wanted, strict=True)):
            name = ("small", "other")[number % 2]
            assert choices(url, {**body, "model": name}) == text
        models = httpx.get(f"{url}/v1/models").json()["data"]
        assert [(one["id"], one["misses"]) for one in models] == [("small", 5), ("other", 6)]


@pytest.mark.slow
def test_the_first_that_dies_ends_the_other(trained, monkeypatch):
    with two(trained, monkeypatch) as (url, (first, other)):
        body = {"prompt": "the", "max_tokens": 3000}
        asked = threading.Thread(target=unanswered, args=(url, body))
        asked.start()
        first.kill()
        asked.join()
        result = commands.finish(other)
        assert result.code == 1
        assert "of this job is gone" in result.err.splitlines()[-1]


@pytest.mark.slow
def test_both_end_in_peace(trained, monkeypatch):
    """The signal goes to both, as a launcher sends it."""
    with two(trained, monkeypatch) as (url, started):
        assert choices(url, {"prompt": "the cat", "max_tokens": 5})
        for process in started:
            process.send_signal(signal.SIGTERM)
        assert [commands.finish(process).code for process in started] == [0, 0]
