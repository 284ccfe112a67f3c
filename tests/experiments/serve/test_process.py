"""The command: how it ends, and what it refuses before anything long starts."""

from __future__ import annotations

import signal
import socket
import time

import httpx
import pytest

from tests.experiments import commands


def wait(url, status):
    """Until /health says so, or a minute has gone by."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            if httpx.get(f"{url}/health").json()["status"] == status:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"never {status}")


def test_it_ends_in_peace(trained):
    """A signal in the middle of an answer: that ends, a new one is refused, the code is 0."""
    args = (f"--run={trained.path}", "--port=0", "--rows=2", "--snapshots=0")
    process = commands.start("serve", *args)
    assert process.stdout is not None
    url = process.stdout.readline().strip().rstrip("/")
    assert httpx.get(f"{url}/health").status_code in (200, 503)
    wait(url, "ok")
    body = {"prompt": "the", "max_tokens": 3000, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as sent:
        lines = sent.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        wait(url, "draining")
        refused = httpx.post(f"{url}/v1/completions", json={"prompt": "the"})
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "5"
        assert list(filter(None, lines))[-1] == "data: [DONE]"
    result = commands.finish(process)
    assert result.code == 0
    assert "programs in" in result.err
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_several_runs_by_name_on_meshes_of_their_own_are_cut_when_their_time_is_over(trained):
    runs = (f"--run=one={trained.path}", f"--run=two={trained.path}")
    meshes = ("--mesh=data=1;data=2", "--emulate=2")
    process = commands.start("serve", *runs, *meshes, "--port=0", "--rows=2", "--drain=0.2")
    assert process.stdout is not None
    url = process.stdout.readline().strip().rstrip("/")
    wait(url, "ok")
    assert [one["id"] for one in httpx.get(f"{url}/v1/models").json()["data"]] == ["one", "two"]
    body = {"prompt": "the", "max_tokens": 8, "temperature": 0}

    def ask(**fields):
        return httpx.post(f"{url}/v1/completions", json={**body, **fields}, timeout=60)

    texts = [ask(model=name).json()["choices"][0]["text"] for name in ("one", "two")]
    assert texts[0] == texts[1]
    assert ask().status_code == ask(model="three").status_code == 404
    long = {**body, "model": "two", "max_tokens": 2**20, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=long, timeout=60) as sent:
        lines = filter(None, sent.iter_lines())
        next(lines)
        process.send_signal(signal.SIGTERM)
        last = list(lines)[-1]
    assert '"error"' in last
    assert commands.finish(process).code == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "give what to serve"),
        (("--run={run}", "--run={run}"), "two models are called"),
        (("--run=/nowhere",), "/nowhere"),
        (("--hf=/nowhere",), "/nowhere"),
        (("--run={run}", "--draft=guess"), "--draft=guess: say ngram, units, run:PATH"),
        (("--run={run}", "--draft=units"), "was not trained to look ahead"),
        (("--run={run}", "--draft=semi:/nowhere"), "/nowhere holds no run"),
        (("--run={run}", "--draft=semi:{run}"), "holds no drafter"),
        (("--run={run}", "--draft=run:/nowhere"), "/nowhere holds no run"),
        (("--run=/no/rate=0.1",), "/no/rate=0.1 holds no run"),
        (("--run={run}", "--loaded=2"), "--loaded=2: 1 models are served"),
        (("--run={run}", "--loaded=-1"), "loaded"),
        (("--run={run}", "--mesh=data=1;data=1"), "names 2 meshes for 1 models"),
        (("--run={run}", "--mesh=pipe=2"), "rows are not served through stages"),
        (("--run={run}", "--chat_template=/nowhere"), "/nowhere"),
        (("--run={run}", "--port={taken}"), "Address already in use; give another port"),
    ],
)
def test_what_cannot_be_served_is_one_line(args, words, trained, command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        names = {"run": trained.path, "taken": taken.getsockname()[1]}
        result = command("serve.__main__", *(arg.format(**names) for arg in args))
    assert result.code == 2
    assert words in result.err
    assert len(result.err.strip().splitlines()) <= 2  # where it runs, and the error
