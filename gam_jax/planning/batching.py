"""Requests on devices that only count seconds, seated and batched by the scheduler that serves.

`gam_jax.serve.service.Service` decides everything. Its executor here has a price for each program
in the place of a device, and its clock shows the time at which the device would be done.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gam_jax.continuations import Continuation
from gam_jax.planning.requests import Asked
from gam_jax.serve.executor import MOST_TOP, Blocks, Drawn, Draws, Sizes, Work
from gam_jax.serve.request import Counts, End, Request, Token
from gam_jax.serve.seating import Settings
from gam_jax.serve.service import Service
from gam_jax.serve.text import Text

Price = Callable[[str, int], float]
"""(program, tokens that the row with the most has read when it ends) -> seconds."""


@dataclasses.dataclass
class Clock:
    """Seconds of the host, and those at which the device has done all that it was told.

    Attributes:
      host: that the host takes to begin a program.
      now: of the host.
      device: of the device.
      busy: seconds in which the device worked, by the program.
    """

    host: float = 0.0
    now: float = 0.0
    device: float = 0.0
    busy: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )

    def __call__(self) -> float:
        """The host's."""
        return self.now

    def told(self, name: str, seconds: float) -> float:
        """When the device will have done something more that takes so long."""
        self.now += self.host
        self.device = max(self.now, self.device) + seconds
        self.busy[name] += seconds
        return self.device

    def wait(self, until: float) -> None:
        """The host waits."""
        self.now = max(self.now, until)


@dataclasses.dataclass(frozen=True)
class Later:
    """An answer; whoever asks for it waits until the device has it."""

    clock: Clock
    at: float
    answer: Any

    def result(self) -> Any:
        """Waits."""
        self.clock.wait(self.at)
        return self.answer


class Priced:
    """`gam_jax.serve.executor.Executor` whose programs take the seconds of a price list.

    It has no guesses: `sizes.block` is 1. Whatever it draws is token 0.

    Args:
      sizes: of the executor that it stands for.
      price: of a program.
      clock: that shows the time.
      held: bytes of a row's own state, and of a page, on each device.
      copy: seconds of so many bytes between device and host; raises a UserError where nobody has
        said how fast that is.

    Attributes:
      calls: how often each program was called.
    """

    def __init__(
        self,
        sizes: Sizes,
        price: Price,
        clock: Clock,
        held: tuple[float, float],
        copy: Callable[[float], float],
    ) -> None:
        self.sizes, self.fingerprint = sizes, "priced"
        self._price, self._clock, self._copy, self._held = price, clock, copy, held
        self._read = np.zeros(sizes.rows, np.int64)
        top = np.zeros((sizes.rows, 1, MOST_TOP))
        tokens, sound = np.zeros((sizes.rows, 1), np.int32), np.ones(sizes.rows, bool)
        self._drawn = Drawn(tokens, tokens[:, 0], sound, top[..., 0], top.astype(np.int32), top)
        self.calls: collections.Counter[str] = collections.Counter()

    def compile(self) -> tuple[str, ...]:
        """There is nothing to compile."""
        return ()

    def row_bytes(self) -> tuple[int, int]:
        """See `Executor`; of one device."""
        row, page = self._held
        return round(row), round(page)

    def seat(self, row: int, key: int, draws: Draws, seen: Any, written: Any = None) -> None:
        """See `Executor`."""
        self._call("seat")

    def load(self, row: int, saved: int | None) -> None:
        """See `Executor`; a state is the number of tokens that it has read."""
        self._call("load")
        self._read[row] = saved or 0

    def save(self, row: int) -> int:
        """See `Executor`."""
        self._call("save")
        return int(self._read[row])

    def copy_page(self, source: int, target: int) -> None:
        """See `Executor`."""
        self._call("copy a page")

    def read(self, blocks: Blocks) -> Later:
        """See `Executor`."""
        width = blocks.tokens.shape[1]
        self._read[blocks.rows] += width
        done = self._call(f"read {width}", int(self._read[blocks.rows].max()))
        return Later(self._clock, done, None)

    def step(self, work: Work) -> Later:
        """See `Executor`. Rows that do nothing are looked at too, as far as they have read."""
        done = self._call("step 1", int(self._read.max()) + 1)
        self._read += work.known > 0
        return Later(self._clock, done, dataclasses.replace(self._drawn, right=work.known))

    def guess(self, work: Any) -> Any:
        """There is no drafter.

        Raises:
          NotImplementedError: always.
        """
        raise NotImplementedError("guesses are not priced")

    def bytes_of(self, saved: int, pages: tuple[int, ...]) -> bytes:
        """See `Executor`; the host waits for the copy."""
        for _ in pages:
            self._call("take a page")
        self._copied(len(pages))
        return str(saved).encode()

    def from_bytes(self, data: bytes, pages: tuple[int, ...]) -> int:
        """See `Executor`."""
        self._copied(len(pages))
        for _ in pages:
            self._call("put a page")
        return int(data)

    def sleep(self) -> None:
        """It is the only model.

        Raises:
          NotImplementedError: always.
        """
        raise NotImplementedError("a model that leaves the device is not priced")

    def wake(self) -> None:
        """As `sleep`."""
        self.sleep()

    def _copied(self, pages: int) -> None:
        row, page = self._held
        self._clock.wait(self._clock.told("to and from the host", self._copy(row + pages * page)))

    def _call(self, name: str, tokens: int = 0) -> float:
        self.calls[name] += 1
        return self._clock.told(name, self._price(name, tokens))


@dataclasses.dataclass
class Told:
    """What became of a request.

    Attributes:
      arrived: seconds.
      first: at which its first token came.
      last: at which its last one came.
      written: tokens.
      reason: why it ended; empty while it runs.
    """

    arrived: float
    first: float = 0.0
    last: float = 0.0
    written: int = 0
    reason: str = ""

    @property
    def waited(self) -> float:
        """Seconds to the first token."""
        return self.first - self.arrived

    @property
    def between(self) -> float:
        """Seconds between two tokens, in the mean; 0 of a text of one token."""
        return (self.last - self.first) / max(self.written - 1, 1)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a simulation leaves.

    Attributes:
      told: of each request, in the order in which they were given.
      seconds: until the last one ended.
      busy: seconds in which the device worked, by the program.
      counts: of the service, when all had ended.
      calls: of each program.
    """

    told: tuple[Told, ...]
    seconds: float
    busy: dict[str, float]
    counts: Counts
    calls: dict[str, int]


class _Silent:
    """Decodes nothing."""

    def push(self, token: int) -> str:
        """No text."""
        return ""

    def flush(self) -> str:
        """No text."""
        return ""


def simulate(
    requests: Sequence[Asked],
    sizes: Sizes,
    price: Price,
    held: tuple[float, float],
    copy: Callable[[float], float],
    budget: int = 512,
    host: float = 0.0,
) -> Outcome:
    """Serves requests as they arrive, by the scheduler's own rules.

    No prompt begins as another one does, so nothing is remembered.

    Args:
      requests: by arrival; each fits the sizes alone.
      sizes: of the executor.
      price: see `Priced`, as what follows.
      held: likewise.
      copy: likewise.
      budget: see `Settings.prefill_budget`.
      host: seconds that the host takes to begin a program.

    Raises:
      UserError: a text had to leave its row, and nobody has said how fast copies to the host are.
    """
    clock = Clock(host)
    executor = Priced(sizes, price, clock, held, copy)
    service = Service(executor, Settings(budget, snapshots=0), None, clock)
    told = [Told(asked.arrives) for asked in requests]
    coming = 0
    while coming < len(requests) or service.busy:
        if not service.busy:
            clock.wait(requests[coming].arrives)
        while coming < len(requests) and requests[coming].arrives <= clock.now:
            service.queue.push("", Text(coming, _request(requests[coming], told[coming], clock)))
            coming += 1
        service.turn()
    clock.wait(clock.device)
    service.seats.carries.close()
    counts = service.counts()
    return Outcome(tuple(told), clock.now, dict(clock.busy), counts, dict(executor.calls))


def _request(asked: Asked, told: Told, clock: Clock) -> Request:
    tell = functools.partial(_tell, told, clock)
    writes = Continuation(_Silent())
    return Request((0,) * asked.reads, asked.writes, Draws(), writes, tell, 0)


def _tell(told: Told, clock: Clock, news: Token | End) -> None:
    if isinstance(news, End):
        told.reason = news.reason
        return
    told.first = told.first if told.written else clock.now
    told.last = clock.now
    told.written += 1
