"""A running server of the OpenAI API, ours or another's, under requests that come as they like.

Requests do not wait for one another's answers: gaps between them are exponential (a Poisson
process). Times count from when a request was due, so that a client that falls behind hides no wait
of the server; how late it was is told too.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.benchmark.timing import Quantity, Rows
from gam_jax.config import unknown
from gam_jax.training.progress import Progress
from sharding.errors import UserError, one_line

if TYPE_CHECKING:
    import httpx

KEY = "GAM_API_KEY"
"""Of the environment, see `experiments.serve`."""
CONNECT, PATIENCE = 10.0, 300.0
"""Seconds for a connection, and without a byte of an answer, after which it counts as lost."""
SHORT = 8
"""Requests of a short run."""
MOST = 2**20
"""Letters of a prompt, tokens of an answer."""
LOST, FAILED = "lost", "failed"
WORDS = (
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "it",
    "was",
    "for",
    "on",
    "as",
    "what",
    "people",
    "over",
)


@dataclasses.dataclass(frozen=True)
class Load:
    """What is asked of a server.

    Attributes:
      url: of the server, with or without /v1.
      rate: requests a second, on average.
      requests: how many.
      letters: of a prompt, the least and the most.
      tokens: of an answer at most, the least and the most of that.
      model: by name; empty for the first that the server has.
      key: that the server wants; empty for that of the environment, if there is one.
    """

    url: str
    rate: float
    requests: int
    letters: tuple[int, int] = (64, 1024)
    tokens: tuple[int, int] = (16, 128)
    model: str = ""
    key: str = ""

    @property
    def base(self) -> str:
        """Where the API is."""
        url = self.url.rstrip("/")
        return url if url.endswith("/v1") else f"{url}/v1"

    @property
    def headers(self) -> dict[bytes, bytes]:
        """With the key, if there is one."""
        key = self.key or os.environ.get(KEY, "")
        return {b"Authorization": f"Bearer {key}".encode()} if key else {}


@dataclasses.dataclass
class Asked:
    """A request and what became of it; times are seconds since the first one could come.

    Attributes:
      due: when it was to be sent.
      body: of it.
      sent: when it was.
      pieces: when each piece of its text came.
      tokens: that the server says it wrote; of a server that does not say, the pieces.
      refused: the code of HTTP, `LOST` or `FAILED`; empty for an answer.
      why: what the server said then.
    """

    due: float
    body: dict[str, Any]
    sent: float = 0.0
    pieces: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0
    refused: str = ""
    why: str = ""


def run(load: Load, short: bool = False) -> Rows:
    """Times of tokens of a running server, and what it refused; seeds are fixed.

    Args:
      load: what is asked of it.
      short: a few requests alone, or fewer if it asks for fewer.

    Raises:
      UserError: httpx is missing, no such server, another key is wanted, no such model, or not one
        request was answered.
    """
    try:
        import httpx
    except ImportError as error:
        raise UserError("--url needs httpx: pip install 'gam_jax[serve]'") from error
    load = dataclasses.replace(load, requests=min(SHORT, load.requests)) if short else load
    model = _model(load)
    asked = drawn(load, model)
    Progress().say(
        f"{load.requests} requests to {load.base}, {asked[-1].due:.0f} s until the last is sent ..."
    )
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    timeout = httpx.Timeout(PATIENCE, connect=CONNECT, pool=None)
    asyncio.run(_all(load, asked, limits, timeout))
    return {f"{model}, {load.requests} requests, {load.rate:g} a second": _figures(asked)}


def drawn(load: Load, model: str) -> list[Asked]:
    """The requests, in the order in which they are due: times, prompts, and lengths of answers."""
    random = np.random.default_rng(0)
    due = np.cumsum(random.exponential(1 / load.rate, load.requests))
    found = []
    for number, when in enumerate(due.tolist()):
        letters, tokens = (
            int(random.integers(least, most + 1)) for least, most in (load.letters, load.tokens)
        )
        words = random.choice(WORDS, letters)  # each has at least a letter, and a space
        body = {
            "model": model,
            "prompt": " ".join(words)[:letters].rstrip().ljust(letters, "."),
            "max_tokens": tokens,
            "seed": number,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        found.append(Asked(when, body))
    return found


def _model(load: Load) -> str:
    """The name of the model that is asked.

    Raises:
      UserError: see `run`.
    """
    import httpx

    try:
        found = httpx.get(f"{load.base}/models", headers=load.headers, timeout=CONNECT)
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise UserError(
            f"--url={load.url}: give the address of a server, as http://127.0.0.1:8000"
        ) from error
    except httpx.HTTPError as error:
        why = one_line(str(error) or type(error).__name__)
        raise UserError(f"--url={load.url}: no server answers there ({why})") from error
    if found.status_code in (401, 403):
        raise UserError(
            f"--url={load.url}: it wants another key (code {found.status_code}): give it as "
            f"--api_key, or better in {KEY}"
        )
    if found.status_code != 200:
        raise UserError(
            f"--url={load.url}: /v1/models has code {found.status_code}: {_said(found.content)}"
        )
    try:
        names = [one["id"] for one in found.json()["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--url={load.url}: it is no server of the OpenAI API: /v1/models lists no models"
        ) from error
    if not names:
        raise UserError(f"--url={load.url}: it serves no model")
    if load.model and load.model not in names:
        raise UserError(f"--model: {unknown(load.model, names, 'model')}")
    return load.model or names[0]


async def _all(
    load: Load, asked: Sequence[Asked], limits: httpx.Limits, timeout: httpx.Timeout
) -> None:
    """Sends each request when it is due, and waits for all answers."""
    import httpx

    async with httpx.AsyncClient(headers=load.headers, limits=limits, timeout=timeout) as client:
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for one in asked:
                await asyncio.sleep(begun + one.due - time.perf_counter())
                group.create_task(_ask(client, f"{load.base}/completions", one, begun))


async def _ask(client: httpx.AsyncClient, url: str, one: Asked, begun: float) -> None:
    """One request from its first byte to its last."""
    import httpx

    one.sent = time.perf_counter() - begun
    try:
        async with client.stream("POST", url, json=one.body) as found:
            if found.status_code != 200:
                one.refused, one.why = str(found.status_code), _said(await found.aread())
                return
            async for line in found.aiter_lines():
                if line.startswith("data:") and not _take(one, line[5:].strip(), begun):
                    return
        one.refused, one.why = LOST, "the stream has no end"
    except httpx.HTTPError as error:
        one.refused, one.why = LOST, one_line(str(error) or type(error).__name__)


def _take(one: Asked, data: str, begun: float) -> bool:
    """Takes an event of a stream; whether more follow."""
    if data == "[DONE]":
        one.tokens = one.tokens or len(one.pieces)
        return False
    try:
        event = json.loads(data)
        if "error" in event:
            one.refused, one.why = FAILED, _said(data.encode())
            return False
        if any(choice.get("text") for choice in event.get("choices", ())):
            one.pieces.append(time.perf_counter() - begun)
        one.tokens = (event.get("usage") or {}).get("completion_tokens", one.tokens)
    except (ValueError, TypeError, AttributeError):
        one.refused, one.why = FAILED, f"no event of a stream: {one_line(data)[:80]}"
        return False
    return True


def _said(content: bytes) -> str:
    """The message of an error, in a line."""
    text = content.decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["error"]["message"])
    return one_line(text)[:200]


def _figures(asked: Sequence[Asked]) -> dict[str, Quantity]:
    """Percentiles over all answers, and counts; of times between tokens, if any has two pieces.

    Raises:
      UserError: there is no answer.
    """
    refused = collections.Counter(one.refused for one in asked if one.refused)
    answered = [one for one in asked if one.pieces and not one.refused]
    if not answered:
        first = next((f": {one.refused}: {one.why}" for one in asked if one.refused), "")
        raise UserError(f"not one of {len(asked)} requests was answered with text{first}")
    between = [gap for one in answered for gap in np.diff(one.pieces).tolist()]
    seconds = max(one.pieces[-1] for one in answered) - asked[0].due
    return {
        **_percentiles("first token", [one.pieces[0] - one.due for one in answered]),
        **(_percentiles("between tokens", between) if between else {}),
        "speed": Quantity.exactly(sum(one.tokens for one in answered) / seconds, "tokens/s"),
        **_percentiles("sent late", [one.sent - one.due for one in asked], (99,)),
        "answered": Quantity.exactly(sum(not one.refused for one in asked)),
        **{f"refused, {code}": Quantity.exactly(n) for code, n in sorted(refused.items())},
    }


def _percentiles(
    name: str, seconds: Sequence[float], wanted: Sequence[int] = (50, 99)
) -> dict[str, Quantity]:
    found = np.percentile(seconds, wanted).tolist()
    return {
        f"{name}, p{which}": Quantity.exactly(value, "s")
        for which, value in zip(wanted, found, strict=True)
    }
