"""Plain connections between process 0 of a job and each other one, for what it tells them.

Programs of several processes must begin in one order everywhere. Who decides that order as it goes
tells it over these connections: messages arrive whole, in the order in which they were sent.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import socket
import struct
import time

import numpy as np

from sharding import meeting, processes
from sharding.errors import UserError

TOKEN = 16
"""Bytes by which process 0 knows those of its own job."""
HEAD = struct.Struct("<I")
HELLO = struct.Struct(f"<{TOKEN}sI")
WHERE = struct.Struct(f"<{TOKEN}sH{processes.HOST_BYTES}s")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Link:
    """One connection: messages of bytes.

    Args:
      stream: connected.
      rank: of the process on the other side.
    """

    def __init__(self, stream: socket.socket, rank: int) -> None:
        self._stream, self.rank = stream, rank

    def send(self, message: bytes) -> None:
        """Sends a message whole; raises an OSError if nobody is there."""
        self._stream.sendall(HEAD.pack(len(message)) + message)

    def receive(self) -> bytes | None:
        """Waits for the next message; None once the other side has closed or is gone."""
        head = self._read(HEAD.size)
        return None if head is None else self._read(*HEAD.unpack(head))

    def close(self) -> None:
        """The other side gets None after what was sent."""
        with contextlib.suppress(OSError):  # it was closed already
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()

    def _read(self, size: int) -> bytes | None:
        found = bytearray()
        while len(found) < size:
            try:
                part = self._stream.recv(size - len(found))
            except OSError:
                return None
            if not part:
                return None
            found += part
        return bytes(found)


def open_links(seconds: float = processes.START_SECONDS) -> list[Link]:
    """In process 0 a link to each other process, by rank; in the others one, to process 0.

    Every process must call it.

    Args:
      seconds: to wait for the others.

    Raises:
      UserError: a process that does not come, or that cannot be reached.
    """
    if processes.is_first():
        return _accepted(seconds)
    token, port, host = WHERE.unpack(processes.gather(np.zeros(WHERE.size, np.uint8))[0].tobytes())
    address = (_host() or host.rstrip(b"\0").decode(errors="replace"), port)
    try:
        stream = socket.create_connection(address, timeout=seconds)
    except OSError as error:
        raise UserError(
            f"process 0 cannot be reached at {address[0]}:{port} ({error}): let processes of a job "
            f"connect to each other"
        ) from error
    stream.settimeout(None)
    stream.sendall(HELLO.pack(token, processes.rank()))
    return [_ready(stream, 0)]


def _accepted(seconds: float) -> list[Link]:
    """Process 0's side."""
    token, host = secrets.token_bytes(TOKEN), _host()
    own = host if host in LOOPBACK else ""
    with socket.create_server((own, 0)) as server:
        where = WHERE.pack(token, server.getsockname()[1], socket.gethostname().encode()[:64])
        processes.gather(np.frombuffer(where, np.uint8))
        links: dict[int, Link] = {}
        until = time.monotonic() + seconds
        while len(links) < processes.count() - 1:
            server.settimeout(max(until - time.monotonic(), 0.01))
            try:
                stream, _ = server.accept()
            except TimeoutError as error:
                missing = set(range(1, processes.count())) - set(links)
                raise UserError(
                    f"process {min(missing)} has not connected to process 0 within {seconds:g} s: "
                    f"let processes of a job connect to each other"
                ) from error
            rank = _greeted(stream, token)
            if rank is not None and rank not in links:
                links[rank] = _ready(stream, rank)
            else:
                stream.close()  # a stranger
    return [links[rank] for rank in sorted(links)]


def _greeted(stream: socket.socket, token: bytes) -> int | None:
    """The rank of one that came; None for a stranger."""
    stream.settimeout(meeting.SAY_SECONDS)
    said = Link(stream, -1)._read(HELLO.size)
    stream.settimeout(None)
    if said is None:
        return None
    given, rank = HELLO.unpack(said)
    return rank if hmac.compare_digest(given, token) and 0 < rank < processes.count() else None


def _ready(stream: socket.socket, rank: int) -> Link:
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return Link(stream, rank)


def _host() -> str:
    """Where the job's first process is, as its environment says; empty if it does not."""
    told = os.environ.get(processes.ADDRESS, "")
    return meeting.address_of(told, processes.ADDRESS).host if told else ""
