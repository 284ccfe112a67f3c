"""A server from its first byte to its last: it listens, compiles, answers, and ends in peace."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType

import uvicorn

from experiments.serve.app import State, make_app
from experiments.serve.served import Served
from sharding.errors import UserError

TICK = 0.02
"""Seconds between two looks at what has changed."""
LAST = 2.0
"""Seconds in which answers are told how they end."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; port 0 takes any that is free.

    Raises:
      UserError: the address is taken, or is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
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
    if loading.done() and (error := loading.exception()):
        raise error
    code = 1 if state.failure else 0
    for served in state.served.values():
        await asyncio.to_thread(served.engine.stop, 0)
    return code


def _loaded(task: asyncio.Task[Mapping[str, Served]], state: State, server: uvicorn.Server) -> None:
    if task.cancelled() or task.exception():
        server.should_exit = True
        return
    state.serve(task.result())
    print(f"serving {', '.join(state.served)}", file=sys.stderr, flush=True)


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
        stops = [asyncio.to_thread(one.engine.stop, 0) for one in state.served.values()]
        await asyncio.gather(*stops)
    until = time.monotonic() + LAST
    while state.active and time.monotonic() < until:
        await asyncio.sleep(TICK)
    server.should_exit = True


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
