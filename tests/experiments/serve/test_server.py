"""A real server: the OpenAI API over a real model, many clients at once, some of whom leave."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import random
import socket
import threading
import time

import httpx
import jax
import pytest

from experiments.serve.app import GRAMMARS
from experiments.serve.body import MOST_BYTES
from gam_jax.serve import trial
from tests.experiments.serve.conftest import KEY, NAME, compiled

WORDS = ["the cat", "a dog sees the ", "one mouse likes a fish.\n", "the", "a bird near ", "behind"]


def answer(server, **body):
    found = server.post(model=NAME, **body)
    assert found.status_code == 200, found.text
    return found.json()


def pieces(server, path="/v1/completions", **body):
    """The events of a stream."""
    with (
        server.client() as client,
        client.stream("POST", path, json={**body, "stream": True}) as sent,
    ):
        assert sent.status_code == 200
        lines = [line.removeprefix("data: ") for line in sent.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def settled(server):
    """Counts, once nothing is in progress any more."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        counts = server.engine.counts()
        if not (counts.rows or counts.queued or server.state.active):
            return counts
        time.sleep(0.01)
    raise AssertionError(
        f"never at rest: {server.engine.counts()}, {len(server.state.active)} active"
    )


def drawn_bodies(count, seed=0):
    """Bodies of any options."""
    draw = random.Random(seed)
    for _ in range(count):
        prompt = "".join(draw.choice(WORDS) for _ in range(draw.choice([1, 1, 2, 5, 20])))
        body = {"prompt": prompt, "max_tokens": draw.randint(1, 24), "seed": draw.randrange(2**32)}
        options = {
            "temperature": draw.choice([0, 0.7, 1.3]),
            "top_p": draw.choice([0.5, 0.9]),
            "top_k": draw.choice([3, 40]),
            "min_p": 0.05,
            "presence_penalty": 0.5,
            "frequency_penalty": -0.5,
            "repetition_penalty": 1.3,
            "logit_bias": {"101": -100, "97": 2},
            "stop": draw.choice(["e", ["sees", "\n"]]),
            "n": draw.choice([1, 2, 3]),
            "logprobs": draw.choice([0, 3]),
            "echo": True,
            "min_tokens": 1,
            "guided_choice": ["the cat", "a dog"],
            "guided_regex": "[a-z]{3,8}",
        }
        chosen = draw.sample(sorted(options), draw.randint(0, 5))
        if "guided_choice" in chosen and "guided_regex" in chosen:
            chosen.remove("guided_regex")
        yield body | {name: options[name] for name in chosen}


@pytest.mark.parametrize("count", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_under_load_each_text_is_that_of_its_request_alone(server, count):
    """So many requests, a fifth of whose clients leave; nothing is left, nothing compiled.

    Log probabilities are equal but for rounding: how much is guessed or found in the cache differs
    with the load, and a block of another width rounds otherwise.
    """
    bodies = list(drawn_bodies(count * 4 // 5))
    alone = [answer(server, **body)["choices"] for body in bodies]
    programs = len(compiled)
    leaving = [
        threading.Thread(target=leave, args=(server, body)) for body in drawn_bodies(count // 5, 1)
    ]
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        for thread in leaving:
            thread.start()
        together = list(pool.map(lambda body: answer(server, **body)["choices"], bodies))
    for thread in leaving:
        thread.join()
    for choices, wanted in zip(together, alone, strict=True):
        assert_same(choices, wanted)
    counts = settled(server)
    assert len(compiled) == programs
    assert dict(counts.requests)["cancelled"] > 0


def assert_same(choices, wanted):
    """Equal but for the rounding of log probabilities."""
    leaves, names = jax.tree.flatten(wanted)
    close = [pytest.approx(x, 1e-5, 1e-5) if isinstance(x, float) else x for x in leaves]
    assert jax.tree.flatten(choices) == (close, names)


def leave(server, body):
    """A client that leaves: half of them in the middle of a stream."""
    body = {**body, "max_tokens": 4000, "stream": body["seed"] % 2 == 0}
    body.pop("stop", None)
    body.pop("guided_choice", None)
    body.pop("guided_regex", None)
    try:
        with server.client() as client, client.stream("POST", "/v1/completions", json=body) as sent:
            for number, _ in enumerate(sent.iter_lines()):
                if number == 3:
                    break
    except httpx.ReadTimeout:
        pass


def test_a_stream_says_what_a_whole_answer_says(server):
    body = {"prompt": "the ca", "max_tokens": 12, "seed": 5, "n": 2, "logprobs": 2}
    whole = answer(server, **body)
    found = pieces(server, **body, stream_options={"include_usage": True})
    assert found[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    for choice in whole["choices"]:
        own = [p for piece in found for p in piece["choices"] if p["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        told = [x for p in own if p["logprobs"] for x in p["logprobs"]["token_logprobs"]]
        # Guesses, which come and go with what they cost, change rounding.
        assert told == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-5)


def test_a_prompt_can_be_scored(server):
    """With echo and logprobs, each of its tokens but the first."""
    found = answer(server, prompt="the cat", max_tokens=1, temperature=0, echo=True, logprobs=1)
    told = found["choices"][0]["logprobs"]
    assert found["choices"][0]["text"].startswith("the cat")
    assert told["tokens"][:7] == list("the cat")
    assert told["text_offset"] == list(range(8))
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    assert all(one < 0 for one in told["token_logprobs"][1:])


def test_a_conversation_is_the_text_of_its_template(server):
    said = [{"role": "user", "content": "the cat"}]
    options = {"max_tokens": 16, "temperature": 0, "logprobs": True, "top_logprobs": 1}
    chat = server.post("/v1/chat/completions", model=NAME, messages=said, **options).json()
    text = answer(
        server, prompt="user: the cat\nassistant: ", max_tokens=16, temperature=0, stop="\n"
    )
    message = chat["choices"][0]["message"]
    assert message == {"role": "assistant", "content": text["choices"][0]["text"]}
    assert chat["usage"]["prompt_tokens"] == len("user: the cat\nassistant: ")
    first = chat["choices"][0]["logprobs"]["content"][0]
    assert first["top_logprobs"][0]["token"] == first["token"]  # the likeliest was taken
    streamed = pieces(server, "/v1/chat/completions", messages=said, max_tokens=16, temperature=0)
    assert streamed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (
        "".join(p["choices"][0]["delta"].get("content", "") for p in streamed) == message["content"]
    )


def test_what_must_be_json_is(server):
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}}
    schema |= {"required": ["a"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "one", "schema": schema}}
    found = answer(server, prompt="x", max_tokens=200, seed=3, response_format=wanted)
    assert found["choices"][0]["finish_reason"] == "stop"
    assert set(json.loads(found["choices"][0]["text"])) == {"a"}
    said = [{"role": "user", "content": "the"}]  # an answer that ends with a line otherwise
    chat = {"messages": said, "max_tokens": 200, "seed": 4, "response_format": wanted}
    found = server.post("/v1/chat/completions", **chat).json()
    assert set(json.loads(found["choices"][0]["message"]["content"])) == {"a"}


def test_a_schema_that_takes_long_to_compile_stops_nobody_else(server, monkeypatch):
    """More of them than are compiled at once."""
    monkeypatch.setattr(trial, "SECONDS", 0.3)
    slow = {"type": "integer", "multipleOf": 1_234_567}
    wanted = {"type": "json_schema", "json_schema": {"name": "one", "schema": slow}}
    with concurrent.futures.ThreadPoolExecutor(GRAMMARS + 1) as pool:
        asked = [
            pool.submit(server.post, prompt="x", response_format=wanted)
            for _ in range(GRAMMARS + 1)
        ]
        answer(server, prompt="the", max_tokens=3, seed=1)
        assert not all(one.done() for one in asked)
        found = [one.result() for one in asked]
    assert {one.status_code for one in found} == {400}
    told = found[0].json()["error"]
    assert told["param"] == "response_format"
    assert "it takes more than 0.3 seconds" in told["message"]


def test_a_choice_waits_for_no_schema(server):
    free = threading.Event()
    held = [server.state.grammars.submit(free.wait, 60) for _ in range(GRAMMARS)]
    try:
        answer(server, prompt="the", guided_choice=["the"], max_tokens=4)
        assert not any(one.done() for one in held)
    finally:
        free.set()


def test_a_second_turn_reads_what_is_new_alone(server):
    prompt = "one mouse likes a fish near the bird. " * 20
    first = answer(server, prompt=prompt, max_tokens=60, seed=1)
    more = prompt + first["choices"][0]["text"] + " the cat"
    second = answer(server, prompt=more, max_tokens=4, seed=1)
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert len(prompt) + 16 <= cached < len(more)


WRONG = {
    "a model that is not there": ({"model": "smal", "prompt": "a"}, 404, "did you mean 'small'"),
    "an id that is none": ({"prompt": [999]}, 400, "999 is no id"),
    "no token": ({"prompt": ""}, 400, "at least one character"),
    "a grammar that is none": ({"prompt": "a", "guided_regex": "("}, 400, "guided_regex"),
    "a bias of no id": ({"prompt": "a", "logit_bias": {"999": 1}}, 400, "999 is no id"),
    "a stop id that is none": ({"prompt": "a", "stop_token_ids": [999]}, 400, "999 is no id"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_requests_are_one_line_in_openai_s_form(server, case):
    body, status, words = WRONG[case]
    found = server.post(**body)
    error = found.json()["error"]
    assert found.status_code == status
    assert words in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v2", 404), ("PUT", "/health", 405)]
)
def test_what_no_route_answers_is_in_openai_s_form_too(server, method, path, status):
    with server.client() as client:
        found = client.request(method, path)
    assert found.status_code == status
    assert f"{method} {path}" in found.json()["error"]["message"]


def test_who_may_ask_and_how_much(server):
    with httpx.Client(base_url=server.url) as client:
        assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 401
        assert client.get("/v1/models").status_code == 401
        assert client.get("/health").json() == {"status": "ok"}
        assert "gam serve" in client.get("/").text
    with server.client() as client:
        long = client.post("/v1/completions", content=b" " * (MOST_BYTES + 1))
        assert long.status_code == 413
        assert client.get(f"/v1/models/{NAME}").json()["id"] == NAME
        ids = client.post("/tokenize", json={"prompt": "the"}).json()
        assert ids["tokens"] == list(b"the")


def test_a_full_queue_says_when_to_ask_again(server):
    """Of 404 places, for rows and those that wait, six bodies take 384; the seventh takes none."""
    body = {"prompt": "the", "max_tokens": 4000, "n": 64, "stream": True}
    with server.client() as client, contextlib.ExitStack() as stack:
        for number in range(6):
            sent = client.stream("POST", "/v1/completions", json={**body, "seed": number})
            assert stack.enter_context(sent).status_code == 200
        found = client.post("/v1/completions", json={**body, "stream": False})
        assert found.status_code == 429
        assert found.json()["error"]["code"] == "queue_full"
        assert int(found.headers["Retry-After"]) >= 1
    settled(server)


def test_who_reads_slowly_stops_nobody_and_keeps_no_row(server):
    """All is written while nothing is read; then it is read, to the last token."""
    settled(server)
    body = {"prompt": "the", "max_tokens": 500, "seed": 8, "stream": True}
    with (
        server.client() as client,
        client.stream("POST", "/v1/completions", json={**body, "temperature": 2}) as sent,
    ):
        assert answer(server, prompt="the", max_tokens=3, seed=1)["usage"]["completion_tokens"] == 3
        until = time.monotonic() + 60
        while server.engine.counts().rows and time.monotonic() < until:
            time.sleep(0.01)
        assert server.engine.counts().rows == 0
        lines = list(filter(None, sent.iter_lines()))
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["choices"][0]["finish_reason"]


def test_metrics_count_what_was_done(server):
    before = settled(server)
    answer(server, prompt="the", max_tokens=3, seed=9)
    after = settled(server)
    with server.client() as client:
        told = client.get("/metrics").text
    assert after.written == before.written + 3
    assert f'gam_written_total{{model="{NAME}"}} {float(after.written)}' in told
    assert "gam_time_to_first_token_seconds_count" in told


def test_the_client_of_openai_understands_it(server):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="a key", max_retries=0)
    said = [{"role": "user", "content": "the"}]
    chat = client.chat.completions.create(model=NAME, messages=said, max_tokens=5, temperature=0)
    assert chat.choices[0].message.content is not None
    stream = client.completions.create(model=NAME, prompt="the", max_tokens=5, stream=True)
    assert [piece.choices[0].finish_reason for piece in stream][-1] == "length"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.completions.create(model=NAME, prompt="the", max_tokens=0)


def test_a_running_server_is_loaded_and_its_times_are_told(server, command):
    args = [f"--url={server.url}", f"--api_key={KEY}", "--rate=50", "--requests=12", "--json"]
    args += ["--letters=4,40", "--tokens=2,9"]
    result = command("benchmark.__main__", "serve", *args)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    ((name, row),) = found["rows"].items()
    assert found["benchmark"] == "serve"
    assert name == f"{NAME}, 12 requests, 50 a second"
    figures = {column: figure["median"] for column, figure in row.items()}
    assert figures["answered"] == 12
    assert not any(column.startswith("refused") for column in figures)
    for times in ("first token", "between tokens"):
        assert 0 <= figures[f"{times}, p50"] <= figures[f"{times}, p99"]
    assert figures["speed"] > 0
    assert figures["first token, p50"] > 0
    few = command("benchmark.__main__", "serve", *args[:3], "--requests=3", "--short", "--json")
    assert list(json.loads(few.out)["rows"]) == [f"{NAME}, 3 requests, 50 a second"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("serve", "--url={url}"), "it wants another key (code 401): give it as --api_key"),
        (("serve", "--url={url}", "--api_key=x\u00e9"), "it wants another key"),
        (("serve", "--url={url}", KEYED := f"--api_key={KEY}", "--model=smal"), "did you mean"),
        (("serve", "--url={url}/v2", KEYED), "/v1/models has code 404"),
        (("serve", "--url=http://127.0.0.1:{free}"), "no server answers there"),
        (("serve", "--url=127.0.0.1:{free}"), "give the address of a server"),
        (("serve", "--url=http://"), "give the address of a server"),
        (("serve", "--url={url}", "--letters=9,1"), "--letters: give the least and the most"),
        (("serve", "--rate=10"), "--rate is read beside --url alone"),
        (("scan", "--url={url}"), "--url is for serve: scan does not read it"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(args, words, server, command):
    with socket.socket() as bound:  # bound, and nobody listens
        bound.bind(("127.0.0.1", 0))
        names = {"url": server.url, "free": bound.getsockname()[1]}
        result = command("benchmark.__main__", *(arg.format(**names) for arg in args))
    assert result.code == 2
    assert words in result.err
    assert len(result.err.strip().splitlines()) <= 2  # what is done, and the error
