"""Which of several models are on the devices, where there is room for fewer than are served.

A model that is asked for and not there comes in. In its place goes the one that was used least
recently, of those without a request in progress. Where all have some, the least recently used is
closed: it takes no new request, and goes when those in progress have ended. So no request is
broken, and none waits for ever. What is decided depends on the order of these calls alone; others
move the models.

Source: Samba-CoE (arXiv 2405.07518), where an expert that is not in fast memory takes the place of
the least recently used one. `gam_jax.planning.tiers.resident` simulates the same.
"""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterable, Sequence

from sharding.bounds import Size, check_number
from sharding.errors import UserError

IN, OUT = "in", "out"
"""Where a model has to be moved."""


class Residents:
    """Places on the devices. Every call is made while `changed` is held.

    Args:
      room: models that are on the devices at once.
      loaded: those that are there at first, at most so many, the least recently used one first.

    Attributes:
      changed: the lock of all engines with a place here, and what tells them of changes.

    Raises:
      UserError: no room, or more models at first than that.
    """

    def __init__(self, room: int, loaded: Sequence[str] = ()) -> None:
        check_number("room", room, Size)
        if len(loaded) > room:
            raise UserError(f"room={room}: {len(loaded)} models cannot be loaded at first")
        self.changed = threading.Condition()
        self._room, self._uses = room, 0
        self._used: dict[str, int] = {}
        self._held, self._loaded = set(loaded), set(loaded)
        self._busy: set[str] = set()
        self._closed: set[str] = set()
        self._going: set[str] = set()
        self._waiting: collections.deque[str] = collections.deque()
        for name in loaded:
            self._use(name)

    def loaded(self, name: str) -> bool:
        """Whether it is on the devices."""
        return name in self._loaded

    def open(self, name: str) -> bool:
        """Whether it is on the devices, and takes requests."""
        return name in self._loaded and name not in self._closed | self._going

    def ask(self, name: str) -> bool:
        """A request has come for a model.

        Returns:
          Whether it is taken in now; else the request waits until the model has come, or is open.
        """
        if name in self._held and name not in self._closed | self._going:
            self._use(name)
            self._busy.add(name)
        elif name not in self._waiting:
            self._waiting.append(name)
            self._arrange()
        return self.open(name)

    def rest(self, name: str, wanted: bool) -> None:
        """A model has no request in progress.

        Args:
          name: of the model.
          wanted: whether requests wait for it to come, or to be open.
        """
        coming, gives_up = self.move(name) == IN, not wanted and name in self._waiting
        if coming or not (gives_up or name in self._busy):
            return
        self._busy.discard(name)
        if gives_up:
            self._waiting.remove(name)
        self._arrange()

    def move(self, name: str) -> str:
        """Where a model has to be moved now: `IN`, `OUT`, or nowhere (empty)."""
        if name in self._going:
            return OUT
        return IN if name in self._held - self._loaded else ""

    def came(self, name: str) -> None:
        """It is on the devices."""
        self._loaded.add(name)
        self.changed.notify_all()

    def gone(self, name: str) -> None:
        """It is not on the devices any more; requests that wait for it still do."""
        for names in (self._held, self._loaded, self._going, self._closed, self._busy):
            names.discard(name)
        self._arrange()

    def left(self, name: str) -> None:
        """It is served no longer: it has no place, waits for none, and is not asked for again."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(name)
        self.gone(name)

    def _use(self, name: str) -> None:
        self._uses += 1
        self._used[name] = self._uses

    def _oldest(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=self._used.__getitem__)

    def _arrange(self) -> None:
        """Gives places to models that wait, and sees to more of them."""
        while self._waiting and self._waiting[0] not in self._going:
            first = self._waiting[0]
            if first not in self._held and len(self._held) == self._room:
                break
            self._waiting.popleft()  # it has a place, perhaps one that it was about to leave
            self._held.add(first)
            self._closed.discard(first)
            self._busy.add(first)
            self._use(first)
        wanted = max(len(self._waiting) - len(self._going), 0)
        goes = self._oldest(self._loaded - self._going - self._busy)[:wanted]
        self._going.update(goes)
        left = self._oldest(self._held - self._going)
        self._closed = set(left[: wanted - len(goes)])
        self.changed.notify_all()
