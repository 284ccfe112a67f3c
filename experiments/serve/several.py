"""One server of several processes: the first one listens and plans, the others do as it says."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import numpy as np
from absl import flags

from experiments.serve.engines import Options, rows_of
from experiments.serve.models import Opened
from gam_jax.serve.executor import Executor
from gam_jax.serve.tickets import Lost, Ticketed, Tickets, follow
from sharding import processes
from sharding.errors import UserError, one_line
from sharding.layout import Layout
from sharding.links import Link, open_links

T = TypeVar("T")
ALIKE = ("rows", "limit", "cache_tokens", "draft", "block", "mesh", "across", "loaded")
"""Flags that decide what programs there are."""


def first_does(do: Callable[[], T]) -> T | None:
    """What process 0 gets from a call that it alone makes; None in the others.

    Raises:
      UserError: in all of them, if it is raised in the first.
    """
    found, problem = None, ""
    if processes.is_first():
        try:
            found = do()
        except UserError as error:
            problem = str(error)
    if problem := processes.first_said(problem):
        raise UserError(problem)
    return found


class Several:
    """Process 0 among the processes of its job, which may be itself alone.

    Args:
      tickets: for the others; None if there are none.
    """

    def __init__(self, tickets: Tickets | None) -> None:
        self._tickets = tickets
        self._devices: list[Executor] = []

    @classmethod
    def join(cls, opened: Sequence[Opened], layouts: Sequence[Layout], options: Options) -> Several:
        """Returns in process 0 alone; the others serve with it until it ends, and exit.

        Raises:
          UserError: processes that were started with unlike flags, or do not reach each other.
        """
        if processes.count() == 1:
            return cls(None)
        values = [flags.FLAGS[name].value for name in ALIKE]
        digest = hashlib.sha256(repr((values, len(opened))).encode()).digest()
        if len({row.tobytes() for row in processes.gather(np.frombuffer(digest, np.uint8))}) > 1:
            raise UserError("the processes of this job have unlike flags: start all alike")
        links = open_links()
        if not processes.is_first():
            _follow(opened, layouts, options, links[0])
        return cls(Tickets(links))

    def share(self, device: Executor) -> Executor:
        """What is called in place of a device of this process."""
        self._devices.append(device)
        return device if self._tickets is None else Ticketed(device, self._tickets)

    def begin(self) -> None:
        """Waits until the others are ready, or `lost` says why they will not be."""
        if self._tickets is not None:
            with contextlib.suppress(Lost):
                self._tickets.meet(self._devices)

    def lost(self) -> str:
        """Why the others are of no more use; empty while they are well."""
        return "" if self._tickets is None else self._tickets.lost()

    def run(self, serve: Callable[[], int]) -> NoReturn:
        """Serves, and ends this process with the code that `serve` gives, and the others."""
        if self._tickets is None:
            sys.exit(serve())
        try:
            code = serve()
        except BaseException:
            self._tickets.close()
            raise
        if code:
            _exit(code)
        self._tickets.end()
        sys.exit(0)


def _follow(
    opened: Sequence[Opened], layouts: Sequence[Layout], options: Options, link: Link
) -> NoReturn:
    """What all processes but the first do. A signal is for the first one to hear."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    devices: list[Executor] = []

    def share(device: Executor) -> Executor:
        devices.append(device)
        return device

    def load() -> list[Executor]:
        for place, waits in options.order(len(opened)):
            rows_of(opened[place], layouts[place], options, share, waits)
        return devices

    try:
        follow(load, link)
    except (Lost, UserError) as error:
        _exit(2 if isinstance(error, UserError) else 1, str(error))
    except Exception as error:
        if (line := processes.lost_another(error)) is None:
            raise
        _exit(1, line)
    sys.exit(0)


def _exit(code: int, error: str = "") -> NoReturn:
    """Without JAX's farewell, for which it would wait for the process that is gone."""
    if error:
        print(f"error: {one_line(error)}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
