"""A server from its first byte to its last: it listens, compiles, answers, and ends in peace."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType

import uvicorn

from experiments.serve.app import State, make_app
from experiments.serve.served import Served
from sharding.errors import UserError

BACKLOG = 2048
"""Connections that wait to be taken."""
TICK = 0.02
"""Seconds between two looks at what has changed."""
LAST = 2.0
"""Seconds in which answers are told how they end."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free.

    Who connects before the server has begun waits for it, and is not refused.

    Raises:
      UserError: the address is taken, or is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        reason = error.strerror or str(error)
        raise UserError(f"--host={host} --port={port}: {reason}; give another port") from error
    return bound


def serve(
    state: State,
    bound: socket.socket,
    load: Callable[[], Mapping[str, Served]],
    drain: float,
) -> int:
    """Serves until a signal ends it, and returns the exit code: 0, or 1 if an engine failed.

    Args:
      state: of the server.
      bound: where it listens.
      load: reads and compiles what is served, in a thread of its own; /health says 503 until then.
      drain: seconds that answers may take to end after a signal.

    Raises:
      UserError: from `load`.
    """
    return asyncio.run(_serve(state, bound, load, drain))


async def _serve(
    state: State,
    bound: socket.socket,
    load: Callable[[], Mapping[str, Served]],
    drain: float,
) -> int:
    config = uvicorn.Config(make_app(state), log_level="warning", access_log=False, lifespan="off")
    server = _Server(config, state)
    loading = asyncio.create_task(asyncio.to_thread(load))
    loading.add_done_callback(lambda task: _loaded(task, state, server))
    ending = asyncio.create_task(_end(state, server, drain))
    try:
        await server.serve(sockets=[bound])
    finally:
        ending.cancel()
        state.grammars.shutdown(wait=False, cancel_futures=True)
    if loading.done() and (error := loading.exception()):
        raise error
    await _stop(state)
    if state.failure:
        return 1
    for one in state.served.values():
        print(told(one), file=sys.stderr, flush=True)
    return 0


def told(served: Served) -> str:
    """What a model has done, in a line: tokens, and what guesses gave beside their ideal."""
    counts = served.engine.counts()
    ended = sum(number for _, number in counts.requests)
    line = f"{served.name}: {ended:,} answers, {counts.written:,} tokens"
    if counts.misses:
        line += f"; loaded anew for {counts.misses:,} of them in {counts.loading_seconds:.2f} s"
    if counts.accepted + counts.fell:
        line += (
            f"; with guesses {counts.tokens_a_pass:.2f} tokens a pass, where "
            f"{counts.ideal_tokens_a_pass:.2f} are the ideal of {counts.block - 1} guesses that "
            f"stand with {counts.acceptance:.2f}"
        )
    return line


def _loaded(task: asyncio.Task[Mapping[str, Served]], state: State, server: uvicorn.Server) -> None:
    if task.cancelled() or task.exception():
        server.should_exit = True
        return
    state.serve(task.result())
    spent = f"{time.process_time():.2f} s of the processor"
    there = [name for name, one in state.served.items() if one.engine.counts().loaded]
    waiting = f" (loaded: {', '.join(there)})" if len(there) < len(state.served) else ""
    line = f"serving {', '.join(state.served)}{waiting}, ready after {spent}"
    print(line, file=sys.stderr, flush=True)


async def _end(state: State, server: uvicorn.Server, drain: float) -> None:
    """Waits for a reason to end, then for the answers, and ends the server."""
    while not (state.draining or state.failure):
        await asyncio.sleep(TICK)
    until = time.monotonic() + (LAST if state.failure else drain)
    while state.active and time.monotonic() < until:
        await asyncio.sleep(TICK)
    if why := state.failure:
        print(f"error: the engine failed: {why}", file=sys.stderr, flush=True)
    if state.active:
        await _stop(state)
        for live in state.active:
            live.fail(state.failure or "the server ended")
    until = time.monotonic() + LAST
    while state.active and time.monotonic() < until:
        await asyncio.sleep(TICK)
    server.should_exit = True


async def _stop(state: State) -> None:
    """Cuts all answers. An engine may wait for a process that is gone: it is left behind then."""
    stops = [
        threading.Thread(target=one.engine.stop, args=(0,), daemon=True)
        for one in state.served.values()
    ]
    for stop in stops:
        stop.start()
    since = time.monotonic()
    while any(stop.is_alive() for stop in stops):
        if state.failure and time.monotonic() > since + LAST:
            return
        await asyncio.sleep(TICK)


class _Server(uvicorn.Server):
    """One that takes no more bodies after the first signal, and ends at once after the second."""

    def __init__(self, config: uvicorn.Config, state: State) -> None:
        super().__init__(config)
        self._state = state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._state.draining:
            self.force_exit = True
            self.should_exit = True
            return
        self._state.draining = True
        print("ending: running answers go on, new ones are refused", file=sys.stderr, flush=True)
