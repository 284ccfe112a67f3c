"""An engine that fails: every open answer is told, new ones are refused, and the server ends."""

from __future__ import annotations

import concurrent.futures
import threading
import time

import httpx
import pytest

from experiments.serve import server
from experiments.serve.engines import Options
from gam_jax.serve.seating import Settings
from tests.experiments.serve.conftest import NAME, started


def fails(device, state, monkeypatch):
    """The device raises."""

    def fail(work):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(device, "step", fail)


def waits(device, state, monkeypatch):
    """The device waits for a process that is gone, for ever."""
    monkeypatch.setattr(device, "step", lambda work: threading.Event().wait())
    monkeypatch.setattr(state, "_lost", lambda: "the device is gone")


@pytest.mark.parametrize("break_", [fails, waits])
def test_a_failed_engine_is_told_to_all_and_ends_the_server(trained, monkeypatch, break_):
    monkeypatch.setattr(server, "LAST", 0.3)
    settings = Settings(prefill_budget=256, snapshots=0)
    options = Options(2, 0, 1, None, settings)
    with (
        started([f"{NAME}={trained.path}"], options, code=1) as running,
        concurrent.futures.ThreadPoolExecutor(4) as pool,
    ):
        device = running.engine._service._executor
        body = {"prompt": "the cat", "max_tokens": 4000, "seed": 1}
        asked = [pool.submit(running.post, **body) for _ in range(4)]
        counts = running.engine.counts()
        while not counts.written or counts.rows + counts.queued < len(asked):
            time.sleep(0.01)
            counts = running.engine.counts()
        break_(device, running.state, monkeypatch)
        found = [one.result(timeout=60) for one in asked]
    assert {one.status_code for one in found} == {500}
    assert all("the device is gone" in one.json()["error"]["message"] for one in found)
    with pytest.raises(httpx.TransportError):  # nobody listens any more
        httpx.get(f"{running.url}/health")
