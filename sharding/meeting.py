"""How the processes of a job meet before JAX connects them: who is missing is said in one line.

JAX itself ends the program, without a word that helps, where its port is taken or a process never
comes. So process 0 first waits at the job's address for all the others, by plain sockets. When all
have come it leaves the port to JAX and tells them to go on.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import threading
import time
from typing import NamedTuple

from sharding.errors import UserError

HELLO = "gam_jax process"
"""What a process says first, before its number and how many there are."""
WAIT, GO = "wait", "go"
SAY_SECONDS = 2.0
"""For what a process says, once it is connected: a line."""
AGAIN_SECONDS = 0.1
LINE_BYTES = 1024
SHOWN = 8
"""Missing processes that are named one by one."""


class Address(NamedTuple):
    """Where process 0 waits."""

    host: str
    port: int


def address_of(text: str, name: str) -> Address:
    """Reads host:port; an IPv6 host stands in brackets.

    Args:
      text: such as "node7:8476" or "[::1]:8476".
      name: of the variable that holds it, for the message.

    Raises:
      UserError: no host, white space in it, or no port from 1 to 65535.
    """
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]/]+):([0-9]{1,5})", text)
    if found is None or not 0 < int(found[2]) < 1 << 16:
        raise UserError(
            f"{name}='{text}': write it as host:port of process 0, the port from 1 to 65535, and "
            f"an IPv6 host in brackets"
        )
    return Address(found[1].strip("[]"), int(found[2]))


def meet(address: Address, rank: int, count: int, seconds: float) -> None:
    """Returns in all `count` processes when all of them are here.

    Args:
      address: of process 0; its port is free again when this returns there.
      rank: of this process.
      count: how many there are.
      seconds: to wait for the others.

    Raises:
      UserError: who is missing, in every process that came; two of one number, or that do not
        agree on how many there are; a port that is taken; a host that cannot be reached.
    """
    if rank:
        _join(address, rank, count, seconds)
        return
    with _listening(address) as server:
        host = _Host(server, count, seconds)
        thread = threading.Thread(target=host.run, daemon=True)
        thread.start()
        try:  # process 0 comes by the same door, which shows that its address leads to it
            _join(address, rank, count, seconds)
        finally:
            host.ended.set()
            thread.join()


def _listening(address: Address) -> socket.socket:
    """A socket at the port, of all addresses of this host, as JAX will open it."""
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("::", address.port), family=socket.AF_INET6, dualstack_ipv6=True
            )
        return socket.create_server(("", address.port))
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "another program listens there" if taken else str(error)
        raise UserError(
            f"process 0 cannot listen at port {address.port} ({why}): choose another port"
        ) from error


class _Host:
    """Process 0's side: notes who comes, and answers all of them together."""

    def __init__(self, server: socket.socket, count: int, seconds: float) -> None:
        self._server, self._count, self._seconds = server, count, seconds
        self._deadline = time.monotonic() + seconds
        self._guests: dict[int, socket.socket] = {}
        self.ended = threading.Event()

    def run(self) -> None:
        """Until all are here or it is too late."""
        self._server.settimeout(AGAIN_SECONDS)
        answer = ""
        while not answer and not self.ended.is_set():
            with contextlib.suppress(TimeoutError):
                guest, _ = self._server.accept()
                answer = self._greet(guest)
            self._forget()
            if not answer and self._all_are_here():
                answer = GO
            elif not answer and time.monotonic() > self._deadline:
                answer = self._missing()
        self._server.close()  # the port is JAX's from here on
        for guest in self._guests.values():
            with guest, contextlib.suppress(OSError):
                guest.sendall(f"{answer}\n".encode())

    def _all_are_here(self) -> bool:
        """And are still there a moment later: one that ends as it comes has not come."""
        if len(self._guests) < self._count:
            return False
        time.sleep(AGAIN_SECONDS)
        self._forget()
        return len(self._guests) == self._count

    def _greet(self, guest: socket.socket) -> str:
        """Notes one that came; what is wrong with it, if anything. Strangers are sent away."""
        said = _line(guest, time.monotonic() + SAY_SECONDS)
        found = re.fullmatch(HELLO + r" ([0-9]{1,9}) of ([0-9]{1,9})", said)
        if found is None:
            guest.close()
            return ""
        with contextlib.suppress(OSError):
            guest.sendall(f"{WAIT}\n".encode())
        rank, count = int(found[1]), int(found[2])
        self._forget()  # one that was started again has the number of one that has ended
        twice = rank in self._guests
        self._guests[-1 if twice else rank] = guest  # it is told, too
        if twice:
            return f"two processes say that they are number {rank}: give each its own"
        if count != self._count:
            return (
                f"process {rank} says that there are {count} processes, process 0 that there are "
                f"{self._count}: give all the same number"
            )
        return ""

    def _forget(self) -> None:
        """Those who have ended while they waited."""
        for rank in [rank for rank, guest in self._guests.items() if _left(guest)]:
            self._guests.pop(rank).close()

    def _missing(self) -> str:
        missing = [str(rank) for rank in range(self._count) if rank not in self._guests]
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        who = f"process {missing[0]} has" if len(missing) == 1 else "processes "
        if len(missing) > 1:
            who += f"{', '.join(missing[:SHOWN])}{more} have"
        return (
            f"{who} not come within {self._seconds:g} s: check that all {self._count} processes "
            f"were started and reach process 0"
        )


def _join(address: Address, rank: int, count: int, seconds: float) -> None:
    """Says who this is until process 0 answers; then that decides how long to wait."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection(address, timeout=SAY_SECONDS) as link:
                link.sendall(f"{HELLO} {rank} of {count}\n".encode())
                said = _line(link, time.monotonic() + SAY_SECONDS)
                if said == WAIT:
                    said = _line(link, time.monotonic() + seconds + SAY_SECONDS)
            if said == GO:
                return
            if said:
                raise UserError(said)
            why = "what listens there is not process 0 of this job, or it has ended"
        except (OSError, UnicodeError) as error:  # names of hosts that cannot be written in DNS
            why = str(error)
        if time.monotonic() > deadline:
            raise UserError(
                f"process 0 does not answer at {address.host}:{address.port} ({why}): check that "
                f"it runs and that this host reaches it"
            )
        time.sleep(AGAIN_SECONDS)


def _line(link: socket.socket, deadline: float) -> str:
    """A line that is said in time, or ""."""
    said = b""
    with contextlib.suppress(OSError):
        while not said.endswith(b"\n") and len(said) < LINE_BYTES:
            link.settimeout(max(0.01, deadline - time.monotonic()))
            part = link.recv(1)  # what is behind the line is left for the next
            if not part:
                break
            said += part
    return said.decode(errors="replace").strip() if said.endswith(b"\n") else ""


def _left(link: socket.socket) -> bool:
    """Whether the other side has ended; it says nothing while it waits."""
    link.setblocking(False)
    try:
        return not link.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        with contextlib.suppress(OSError):
            link.setblocking(True)
