"""Rows on the devices of several processes: every call of the first is a ticket that all run.

A program over several processes must begin in each of them, and in one order; else one waits in a
sum for numbers that the others never send, or takes those of another sum. So process 0, which
alone has the texts, numbers its calls. It sends each to the others before it begins it itself, and
they run what comes, in that order: a ticket with another number than the next is refused.

Source: "EnergonAI: An Inference System for 10-100 Billion Parameter Transformer Models" (arXiv
2209.02341), whose engine numbers batches likewise.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import json
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from gam_jax.serve.executor import Blocks, Draws, Executor, Pending, Saved, Work
from sharding.errors import UserError
from sharding.links import Link

CALLS = (
    *("seat", "load", "save", "copy_page", "read", "step", "guess", "bytes_of", "from_bytes"),
    *("sleep", "wake"),
)
"""What a ticket may ask for; all else of an `Executor` asks the device for nothing."""
KEPT = ("save", "from_bytes")
"""Those whose answer is a state, which later tickets name by the number of theirs."""
FLY = ("read", "step")
"""Those whose answer may still be computed."""
READY = b""
"""What is said once all is compiled."""


class Lost(Exception):
    """Another process is gone, or has refused a ticket."""


@dataclasses.dataclass(frozen=True)
class Named:
    """A state that was saved by the ticket of this number."""

    number: int


@dataclasses.dataclass(frozen=True)
class Ticket:
    """One call.

    Attributes:
      number: from 0, of all devices together.
      device: which one.
      call: its method.
      args: of the call.
      free: numbers of tickets whose states nobody will ask for again.
    """

    number: int
    device: int
    call: str
    args: tuple[Any, ...]
    free: tuple[int, ...] = ()

    def to_bytes(self) -> bytes:
        """A line of JSON, and behind it the bytes of arrays."""
        parts: list[bytes] = []
        args = [_told(arg, parts) for arg in self.args]
        line = json.dumps([self.number, self.device, self.call, args, self.free])
        return b"".join([line.encode(), b"\n", *parts])

    @classmethod
    def from_bytes(cls, message: bytes) -> Ticket:
        """The inverse."""
        line, _, rest = message.partition(b"\n")
        number, device, call, args, free = json.loads(line)
        parts = memoryview(rest)
        read = []
        for arg in args:
            value, parts = _read(arg, parts)
            read.append(value)
        return cls(number, device, call, tuple(read), tuple(free))


class Tickets:
    """Process 0's side: numbers calls, and sends each to all other processes.

    Args:
      links: to them.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = links
        self._lock = threading.Lock()
        self._number, self._devices = 0, 0
        self._free: collections.deque[int] = collections.deque()
        self._lost, self._ended = "", False
        self._changed = threading.Condition()
        self._unready = {link.rank for link in links}
        for link in links:
            threading.Thread(target=self._listen, args=(link,), daemon=True).start()

    def lost(self) -> str:
        """Why no more tickets can be run; empty while all is well."""
        return self._lost

    def add(self) -> int:
        """The number of another device."""
        self._devices += 1
        return self._devices - 1

    def run(self, device: int, call: str, args: Sequence[Any], own: Callable[[], Any]) -> Any:
        """Sends a ticket, and begins it here; what `own` gives. A state is named by its ticket.

        Raises:
          Lost: another process is gone.
        """
        with self._lock:
            number, self._number = self._number, self._number + 1
            message = Ticket(number, device, call, tuple(args), self._freed()).to_bytes()
            for link in self._links:
                self._send(link, message)
            answer = own()
        return Kept(number, answer, self._free.append) if call in KEPT else answer

    def meet(self, devices: Sequence[Executor]) -> None:
        """Tells the others what is served, and waits until they are ready for it.

        Raises:
          Lost: one of them is gone, or serves something else.
        """
        for link in self._links:
            self._send(link, served_mark(devices))
        with self._changed:
            self._changed.wait_for(lambda: self._lost or not self._unready)
        if self._lost:
            raise Lost(self._lost)

    def end(self) -> None:
        """Lets the other processes end well."""
        with self._lock:
            self._ended = True
            for link in self._links:
                with contextlib.suppress(OSError):
                    link.send(b"")

    def close(self) -> None:
        """Lets the other processes see that this one is gone."""
        self._ended = True
        for link in self._links:
            link.close()

    def _send(self, link: Link, message: bytes) -> None:
        if self._lost:
            raise Lost(self._lost)
        try:
            link.send(message)
        except OSError as error:
            raise Lost(self._lost or gone(link.rank)) from error

    def _listen(self, link: Link) -> None:
        """The others say that they are ready, and then nothing but why they end."""
        said = link.receive()
        if said == READY:
            with self._changed:
                self._unready.discard(link.rank)
                self._changed.notify()
            said = link.receive()
        if self._ended:
            return
        with self._changed:
            why = gone(link.rank) if said is None else f"process {link.rank}: {said.decode()}"
            self._lost = self._lost or why
            self._changed.notify()

    def _freed(self) -> tuple[int, ...]:
        """Takes them one by one: others may come meanwhile, whenever Python collects garbage."""
        found = []
        while self._free:
            found.append(self._free.popleft())
        return tuple(found)


class Kept:
    """A saved state in process 0; once nobody has it, the others drop theirs."""

    def __init__(self, number: int, saved: Saved, free: Callable[[int], None]) -> None:
        self.number, self.saved = number, saved
        weakref.finalize(self, free, number)


class Ticketed:
    """An `executor.Executor` on all processes at once, see there.

    Args:
      device: this process's part, compiled.
      tickets: the job's.
    """

    def __init__(self, device: Executor, tickets: Tickets) -> None:
        self._device, self._tickets, self._number = device, tickets, tickets.add()
        self.sizes, self.fingerprint = device.sizes, device.fingerprint

    def compile(self) -> tuple[str, ...]:
        """See `Executor.compile`; each process compiles for itself."""
        return self._device.compile()

    def seat(
        self,
        row: int,
        key: int,
        draws: Draws,
        seen: Int[np.ndarray, T],
        written: Int[np.ndarray, N] | None = None,
    ) -> None:
        """See `Executor.seat`."""
        self._run("seat", row, key, draws, seen, written)

    def load(self, row: int, saved: Saved | None) -> None:
        """See `Executor.load`."""
        self._run("load", row, saved)

    def save(self, row: int) -> Saved:
        """See `Executor.save`."""
        return self._run("save", row)

    def copy_page(self, source: int, target: int) -> None:
        """See `Executor.copy_page`."""
        self._run("copy_page", source, target)

    def read(self, blocks: Blocks) -> Pending:
        """See `Executor.read`."""
        return self._run("read", blocks)

    def step(self, work: Work) -> Pending:
        """See `Executor.step`."""
        return self._run("step", work)

    def guess(self, work: Int[np.ndarray, "S N+1"]) -> Int[np.ndarray, "S G"]:
        """See `Executor.guess`."""
        return self._run("guess", work)

    def bytes_of(self, saved: Saved, pages: tuple[int, ...]) -> bytes:
        """See `Executor.bytes_of`."""
        return self._run("bytes_of", saved, pages)

    def from_bytes(self, data: bytes, pages: tuple[int, ...]) -> Saved:
        """See `Executor.from_bytes`."""
        return self._run("from_bytes", data, pages)

    def row_bytes(self) -> tuple[int, int]:
        """See `Executor.row_bytes`."""
        return self._device.row_bytes()

    def sleep(self) -> None:
        """See `Executor.sleep`."""
        self._run("sleep")

    def wake(self) -> None:
        """See `Executor.wake`."""
        self._run("wake")

    def _run(self, call: str, *args: Any) -> Any:
        own = [arg.saved if isinstance(arg, Kept) else arg for arg in args]
        method = getattr(self._device, call)
        return self._tickets.run(self._number, call, args, lambda: method(*own))


def follow(load: Callable[[], Sequence[Executor]], link: Link) -> None:
    """Runs the tickets of process 0 until it ends.

    Args:
      load: makes this process's parts, in the order in which process 0 makes its own.
      link: to process 0, which is told why if this process cannot go on; closed at the end.

    Raises:
      Lost: process 0 is gone, serves something else, or a ticket came that was not the next.
    """
    try:
        _follow(load(), link)
    except Exception as error:
        with contextlib.suppress(OSError):
            link.send(str(error).encode())
        raise
    finally:
        link.close()


def served_mark(devices: Sequence[Executor]) -> bytes:
    """Equal where the same models are served in the same sizes."""
    told = [(device.fingerprint, dataclasses.astuple(device.sizes)) for device in devices]
    return hashlib.sha256(repr(told).encode()).digest()


def _follow(devices: Sequence[Executor], link: Link) -> None:
    mark = link.receive()
    if mark and mark != served_mark(devices):
        raise Lost("it serves another model, or in other sizes: start all by the same command")
    if not mark:
        return _left(mark, link)
    link.send(READY)
    kept: dict[int, Saved] = {}
    flying: Pending | None = None
    due = 0
    while message := link.receive():
        ticket = Ticket.from_bytes(message)
        if ticket.number != due:
            raise Lost(f"ticket {ticket.number} came where {due} was due")
        if ticket.call not in CALLS or not 0 <= ticket.device < len(devices):
            raise Lost(f"ticket {due} asks device {ticket.device} for '{ticket.call}'")
        due += 1
        for number in ticket.free:
            kept.pop(number, None)
        args = [kept[arg.number] if isinstance(arg, Named) else arg for arg in ticket.args]
        try:
            answer = getattr(devices[ticket.device], ticket.call)(*args)
        except UserError:
            continue  # process 0 refuses it too, and tells who asked
        if ticket.call in KEPT:
            kept[ticket.number] = answer
        elif ticket.call in FLY:
            if flying is not None:
                flying.result()  # an error of the one before, and no more than two in flight
            flying = answer
    _left(message, link)


def _left(message: bytes | None, link: Link) -> None:
    """Raises a Lost where process 0 has not said that it ends."""
    if message is None:
        raise Lost(gone(link.rank))


def gone(rank: int) -> str:
    """One line."""
    return f"process {rank} of this job is gone"


def _told(arg: Any, parts: list[bytes]) -> Any:
    """An argument as JSON; what arrays hold goes to `parts`."""
    if isinstance(arg, np.ndarray):
        parts.append(np.ascontiguousarray(arg).tobytes())
        return {"array": [arg.dtype.str, arg.shape]}
    if isinstance(arg, bytes):
        parts.append(arg)
        return {"bytes": len(arg)}
    if isinstance(arg, Kept | Named):
        return {"saved": arg.number}
    if isinstance(arg, Draws):
        return {"draws": dataclasses.asdict(arg)}
    if isinstance(arg, Work | Blocks):
        fields = (getattr(arg, field.name) for field in dataclasses.fields(arg))
        kind = "work" if isinstance(arg, Work) else "blocks"
        return {kind: [_told(field, parts) for field in fields]}
    return [int(x) for x in arg] if isinstance(arg, tuple) else arg if arg is None else int(arg)


def _read(told: Any, parts: memoryview) -> tuple[Any, memoryview]:
    """The inverse: the argument, and the parts that are left."""
    if isinstance(told, list):
        return tuple(told), parts
    if not isinstance(told, dict):
        return told, parts
    ((kind, value),) = told.items()
    if kind == "array":
        dtype, shape = np.dtype(value[0]), value[1]
        size = dtype.itemsize * int(np.prod(shape))
        return np.frombuffer(parts[:size], dtype).reshape(shape), parts[size:]
    if kind == "bytes":
        return bytes(parts[:value]), parts[value:]
    if kind == "saved":
        return Named(value), parts
    if kind == "draws":
        bias = tuple((token, number) for token, number in value["bias"])
        return Draws(**{**value, "bias": bias}), parts
    fields = []
    for one in value:
        field, parts = _read(one, parts)
        fields.append(field)
    return (Work if kind == "work" else Blocks)(*fields), parts
