"""First and last moments: who comes before a server has begun, or after its signal."""

import asyncio
import socket

import httpx

from experiments.serve.app import State, make_app
from experiments.serve.served import Served
from experiments.serve.server import listen
from gam_jax.data.tokenizer import ByteTokenizer
from gam_jax.serve.engine import Engine
from gam_jax.serve.seating import Settings
from tests.gam_jax.serve.fake import FakeExecutor
from tests.gam_jax.serve.test_service import BUDGET, sizes_of


def test_who_connects_before_the_server_has_begun_is_not_refused():
    with listen("127.0.0.1", 0) as bound:
        socket.create_connection(bound.getsockname(), timeout=10).close()


def no_grammar(grammar, ends):
    raise AssertionError("no constraint was asked for")


def test_a_body_that_is_whole_after_the_signal_is_refused():
    """Nobody would wait for its answer any more."""
    engine = Engine(FakeExecutor(sizes_of(vocab=256)), Settings(BUDGET))
    engine.start()
    tokenizer = ByteTokenizer()
    served = Served("small", 0, tokenizer, 256, 0, (), None, False, None, engine, no_grammar)
    state = State("")
    state.serve({"small": served})

    async def body():
        yield b'{"prompt": "the cat", '
        state.draining = True
        yield b'"max_tokens": 4}'

    async def answered(content):
        transport = httpx.ASGITransport(make_app(state))
        async with httpx.AsyncClient(transport=transport, base_url="http://small") as client:
            return await client.post("/v1/completions", content=content)

    before = asyncio.run(answered(b'{"prompt": "the cat", "max_tokens": 4}'))
    assert before.json()["usage"]["completion_tokens"] == 4
    late = asyncio.run(answered(body()))
    assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
    engine.stop(0)
    assert dict(engine.counts().requests) == {"length": 1}
