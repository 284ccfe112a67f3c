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


def test_one_after_another_hits_as_the_simulator_says_and_no_text_knows_of_it(runs):
    """Then sorted by model, so that each comes once at most; then many at once."""
    names, bodies = drawn(16)
    hits, texts = [], []
    options = Options(2, 0, 1, None, SETTINGS, loaded=ROOM)
    with started(runs, options) as running, running.client() as client:
        assert [described(client, name)["loaded"] for name in NAMES] == [True, True, False]
        programs = len(compiled)
        for name, body in zip(names, bodies, strict=True):
            before = described(client, name)
            texts.append(choices(running.post(**body)))
            after = described(client, name)
            hits.append(after["hits"] == before["hits"] + 1)
            assert after["misses"] == before["misses"] + (not hits[-1])
            assert sum(described(client, other)["loaded"] for other in NAMES) == ROOM
        assert hits == resident([*NAMES[:ROOM], *names], ROOM)[ROOM:]
        assert {True, False} == {*hits}
        for place in sorted(range(len(names)), key=names.__getitem__):
            assert choices(running.post(**bodies[place])) == texts[place]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda body: choices(running.post(**body)), bodies))
        assert found == texts
        assert len(compiled) == programs
        told = client.get("/metrics").text
        for name in NAMES:
            one = described(client, name)
            assert f'gam_loaded{{model="{name}"}} {float(one["loaded"])}' in told
            assert f'gam_hits_total{{model="{name}"}} {float(one["hits"])}' in told
            assert f'gam_misses_total{{model="{name}"}} {float(one["misses"])}' in told


@pytest.mark.slow
def test_the_command_with_room_for_two_writes_what_it_writes_with_room_for_all(runs):
    names, bodies = drawn(16)
    texts = []
    for flags in ((), (f"--loaded={ROOM}",)):
        args = [f"--run={run}" for run in runs]
        process = commands.start("serve", *args, *flags, "--port=0", "--rows=2")
        assert process.stdout is not None
        url = process.stdout.readline().strip().rstrip("/")
        wait(url, "ok")
        asked = [httpx.post(f"{url}/v1/completions", json=body, timeout=60) for body in bodies]
        texts.append([choices(one) for one in asked])
        models = httpx.get(f"{url}/v1/models").json()["data"]
        process.send_signal(signal.SIGTERM)
        result = commands.finish(process)
        assert result.code == 0
        misses = resident([*NAMES[:ROOM], *names], ROOM)[ROOM:].count(False) if flags else 0
        assert sum(one["misses"] for one in models) == misses
        assert ("serving a, b, c (loaded: a, b), ready after" in result.err) == bool(flags)
        assert ("; loaded anew for " in result.err) == bool(flags)
    assert texts[0] == texts[1]
