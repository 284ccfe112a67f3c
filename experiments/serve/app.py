"""The OpenAI API over engines: routes, and when they refuse."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import hmac
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from experiments.serve.answers import Answers
from experiments.serve.asked import CHAT, TEXT, Asked, asked_chat, asked_text
from experiments.serve.body import MOST_BYTES, Body
from experiments.serve.live import Live
from experiments.serve.metrics import Metrics
from experiments.serve.refusal import Refused
from experiments.serve.served import Served, shown
from gam_jax.config import unknown

PAGE = pathlib.Path(__file__).with_name("page.html")
WAIT = 5
"""Seconds after which a client may ask a server again that has just begun, or is about to end."""

GRAMMARS = 2
"""Schemas and expressions that are compiled at once; others wait, and nothing else for them."""

Endpoint = Callable[[Request], Awaitable[Response]]


class State:
    """What the server is doing.

    Attributes:
      served: models by name; empty until all programs are compiled.
      metrics: of their engines.
      key: that clients must give; empty for none.
      active: answers to bodies, on their way.
      draining: whether no more are taken.
      grammars: threads for what may take long to compile.

    Args:
      key: as above.
      lost: says why another process of this job is of no more use; empty while all are well.
    """

    def __init__(self, key: str, lost: Callable[[], str] = str) -> None:
        self.served: dict[str, Served] = {}
        self.metrics = Metrics({})
        self.key = key
        self._lost = lost
        self.active: set[Live] = set()
        self.draining = False
        self.grammars = concurrent.futures.ThreadPoolExecutor(GRAMMARS, "grammars")

    def serve(self, served: Mapping[str, Served]) -> None:
        """From now on these are served."""
        self.metrics = Metrics({name: one.engine for name, one in served.items()})
        self.served = dict(served)

    @property
    def failure(self) -> str:
        """Why an engine has stopped by itself, or cannot go on; empty if none has."""
        failures = (why for one in self.served.values() if (why := one.engine.failure()))
        return self._lost() or next(failures, "")

    @property
    def status(self) -> str:
        """In a word; "ok" alone means that bodies are taken."""
        if self.failure:
            return "failed"
        if self.draining:
            return "draining"
        return "ok" if self.served else "compiling"

    def check(self, request: Request) -> None:
        """Raises a Refused for a client without the key, or while nothing is served."""
        given = request.headers.get("authorization", "")
        wanted = f"Bearer {self.key}"
        if self.key and not hmac.compare_digest(given.encode(), wanted.encode()):
            raise Refused(401, "give the key of this server as 'Authorization: Bearer KEY'")
        if self.status == "failed":
            raise Refused(500, f"the engine failed: {self.failure}", code="engine_failed")
        if self.status != "ok":
            raise Refused(503, f"the server is {self.status}", code=self.status, retry=WAIT)

    def model(self, name: Any) -> Served:
        """The model of a name; a Refused for another one. The only one may be left unnamed."""
        if name is None and len(self.served) == 1:
            return next(iter(self.served.values()))
        if not isinstance(name, str) or name not in self.served:
            told = unknown(name, self.served, "model")
            raise Refused(404, f"model: {told}", "model", "model_not_found")
        return self.served[name]


def make_app(state: State) -> Starlette:
    """The application; `state` may change while it runs."""

    async def completions(request: Request) -> Response:
        return await _answer(state, request, asked_text, TEXT)

    async def chat(request: Request) -> Response:
        return await _answer(state, request, asked_chat, CHAT)

    async def models(request: Request) -> Response:
        data = [_described(one) for one in state.served.values()]
        return JSONResponse({"object": "list", "data": data})

    async def model(request: Request) -> Response:
        return JSONResponse(_described(state.model(request.path_params["name"])))

    async def tokenize(request: Request) -> Response:
        body = Body(await _content(request), ("model", "prompt"))
        served = state.model(body.get("model"))
        ids = served.encode(body.text("prompt", "", MOST_BYTES))
        texts = [shown(served.tokenizer, one) for one in ids]
        most = served.limit or None
        return JSONResponse({"tokens": ids, "texts": texts, "count": len(ids), "limit": most})

    async def health(request: Request) -> Response:
        status = state.status
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    async def metrics(request: Request) -> Response:
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(request: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    return Starlette(
        routes=[
            Route("/v1/completions", _guarded(state, completions), methods=["POST"]),
            Route("/v1/chat/completions", _guarded(state, chat), methods=["POST"]),
            Route("/v1/models", _guarded(state, models)),
            Route("/v1/models/{name:path}", _guarded(state, model)),
            Route("/tokenize", _guarded(state, tokenize), methods=["POST"]),
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/", page),
        ],
        exception_handlers={HTTPException: _no_such_route, Exception: _fault},
    )


async def _no_such_route(request: Request, error: Exception) -> Response:
    """What no route answers, in OpenAI's form too."""
    assert isinstance(error, HTTPException)
    told = Refused(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(told.body, told.status, headers=error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    """A fault of the server itself, whose trace goes to standard error."""
    told = Refused(500, f"a fault of the server ({type(error).__name__})", code="fault")
    return JSONResponse(told.body, told.status)


def _guarded(state: State, endpoint: Endpoint) -> Endpoint:
    """The endpoint for whom it is served, with what is refused in OpenAI's form."""

    async def call(request: Request) -> Response:
        try:
            state.check(request)
            return await endpoint(request)
        except Refused as error:
            return JSONResponse(error.body, error.status, headers=error.headers)
        except ClientDisconnect:
            return Response(status_code=499)

    return call


async def _content(request: Request) -> bytes:
    """The body, read no further than it may be long."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > MOST_BYTES:
            raise Refused(413, f"the body is longer than {MOST_BYTES:,} bytes")
    return bytes(found)


async def _answer(
    state: State,
    request: Request,
    read: Callable[[Body], Asked],
    fields: tuple[str, ...],
) -> Response:
    body = Body(await _content(request), fields)
    served, asked = state.model(body.get("model")), read(body)
    if not asked.user and request.client is not None:
        asked = dataclasses.replace(asked, user=request.client.host)
    prompts = await asyncio.to_thread(served.prompts, asked)
    live = Live(served.engine, state.metrics.times)
    pool = state.grammars if asked.grammar is not None and asked.grammar.slow else None
    made = functools.partial(served.requests, asked, prompts, live.tell)
    requests = await asyncio.get_running_loop().run_in_executor(pool, made)
    state.check(request)  # the server may have been told to end since the body began
    live.submit(requests)
    answers = Answers.to(served, asked, prompts)
    if asked.stream:
        return _Pieces(state, live, answers.pieces(live.events()))
    with _active(state, live):
        return await _unless_gone(request, answers, live)


@contextlib.contextmanager
def _active(state: State, live: Live) -> Iterator[None]:
    """While a body is answered; a client that leaves ends what it asked for."""
    state.active.add(live)
    try:
        yield
    finally:
        state.active.discard(live)
        live.cancel()


class _Pieces(StreamingResponse):
    """An answer in pieces. What is sent may be cut before the first of them is made."""

    def __init__(self, state: State, live: Live, pieces: AsyncIterator[str]) -> None:
        super().__init__(pieces, media_type="text/event-stream")
        self._state, self._live = state, live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with _active(self._state, self._live):
            await super().__call__(scope, receive, send)


async def _unless_gone(request: Request, answers: Answers, live: Live) -> Response:
    """A whole answer, while the client waits for it: nothing else tells that it has left."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    whole = asyncio.create_task(answers.whole(live.events()))
    left = asyncio.create_task(gone())
    try:
        await asyncio.wait({whole, left}, return_when=asyncio.FIRST_COMPLETED)
        if not whole.done():
            raise ClientDisconnect()
        return JSONResponse(whole.result())
    finally:
        for task in (whole, left):
            task.cancel()
        await asyncio.gather(whole, left, return_exceptions=True)


def _described(served: Served) -> dict[str, Any]:
    own = {"id": served.name, "object": "model", "created": served.created, "owned_by": "gam_jax"}
    own |= {"max_model_len": served.limit or None, "chat": served.template is not None}
    counts = served.engine.counts()
    return {**own, "loaded": counts.loaded, "hits": counts.hits, "misses": counts.misses}
