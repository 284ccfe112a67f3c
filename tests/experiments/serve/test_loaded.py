"""Three runs with room for two: hits are the simulator's, and no text knows of it."""

from __future__ import annotations

import concurrent.futures
import random
import shutil
import signal

import httpx
import pytest

from experiments.serve.engines import Options
from gam_jax.planning.tiers import resident
from gam_jax.serve.seating import Settings
from tests.experiments import commands
from tests.experiments.serve.conftest import compiled, started
from tests.experiments.serve.test_process import wait
from tests.experiments.serve.test_server import drawn_bodies

NAMES, ROOM = "abc", 2
SETTINGS = Settings(prefill_budget=256)


@pytest.fixture(scope="module")
def runs(trained, tmp_path_factory):
    """A run as it was at an earlier step, as it is, and the first once more."""
    folder = tmp_path_factory.mktemp("runs")
    for name in NAMES:
        shutil.copytree(trained.path, folder / name)
    for name in "ac":
        steps = sorted((folder / name / "checkpoints").iterdir(), key=lambda path: int(path.name))
        assert len(steps) > 1
        shutil.rmtree(steps[-1])
    return [str(folder / name) for name in NAMES]


def drawn(count, seed=0):
    """Bodies for models drawn as 1 / rank, and the models."""
    names = random.Random(seed).choices(NAMES, (1, 1 / 2, 1 / 3), k=count)
    bodies = zip(names, drawn_bodies(count), strict=True)
    return names, [{**body, "model": name, "n": 1} for name, body in bodies]


def choices(answered):
    assert answered.status_code == 200, answered.text
    return [(one["text"], one["finish_reason"]) for one in answered.json()["choices"]]


def described(client, name):
    return client.get(f"/v1/models/{name}").json()


def test_one_after_another_hits_as_the_simulator_says_and_texts_are_those_with_room_for_all(runs):
    names, bodies = drawn(24)
    programs = []
    with started(runs, Options(2, 0, 1, None, SETTINGS)) as running, running.client() as client:
        wanted = [choices(running.post(**body)) for body in bodies]
        assert all(described(client, name)["loaded"] for name in NAMES)
    hits = []
    options = Options(2, 0, 1, None, SETTINGS, loaded=ROOM)
    with started(runs, options) as running, running.client() as client:
        assert [described(client, name)["loaded"] for name in NAMES] == [True, True, False]
        programs.append(len(compiled))
        for name, body, text in zip(names, bodies, wanted, strict=True):
            before = described(client, name)
            assert choices(running.post(**body)) == text
            after = described(client, name)
            hits.append(after["hits"] == before["hits"] + 1)
            assert after["misses"] == before["misses"] + (not hits[-1])
            assert sum(described(client, other)["loaded"] for other in NAMES) == ROOM
        assert hits == resident([*NAMES[:ROOM], *names], ROOM)[ROOM:]
        assert True in hits
        assert False in hits
        # Many at once: each text is the same, whoever is on the devices.
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda body: choices(running.post(**body)), bodies))
        assert found == wanted
        assert len(compiled) == programs[0]
        told = client.get("/metrics").text
        misses = sum(described(client, name)["misses"] for name in NAMES)
        for name in NAMES:
            one = described(client, name)
            assert f'gam_loaded{{model="{name}"}} {float(one["loaded"])}' in told
            assert f'gam_hits_total{{model="{name}"}} {float(one["hits"])}' in told
            assert f'gam_misses_total{{model="{name}"}} {float(one["misses"])}' in told
        assert misses > hits.count(False)


@pytest.mark.slow
def test_the_command_says_which_are_loaded_and_how_often_one_came(runs):
    args = [f"--run={run}" for run in runs]
    flags = (f"--loaded={ROOM}", "--port=0", "--rows=2", "--draft=ngram", "--block=4")
    process = commands.start("serve", *args, *flags)
    assert process.stdout is not None
    url = process.stdout.readline().strip().rstrip("/")
    wait(url, "ok")
    names, bodies = drawn(12)
    for body in bodies:
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200
    models = httpx.get(f"{url}/v1/models").json()["data"]
    hits = resident([*NAMES[:ROOM], *names], ROOM)[ROOM:]
    assert sum(one["misses"] for one in models) == hits.count(False)
    process.send_signal(signal.SIGTERM)
    result = commands.finish(process)
    assert result.code == 0
    assert "serving a, b, c (loaded: a, b), ready after" in result.err
    assert "; loaded anew for " in result.err
