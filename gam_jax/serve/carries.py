"""What was read once and need not be read again: states of rows after some first tokens.

A snapshot is found by a hash of the model and of all tokens that it has read, so what is found is
the state after just these tokens. It lives on the device first, where its pages are shared with
the rows that go on from it; then, as bytes, in the host's memory; and last in a folder.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gam_jax.serve.executor import Executor, Saved
from gam_jax.serve.folder import Folder, Key, Tally
from gam_jax.serve.pages import Pages, pages_of
from sharding.errors import UserError

RECENT = 128
"""Prompts that are remembered, to see where a new one parts from them."""


@dataclasses.dataclass
class Snapshot:
    """A state of a row, on the device or in the host's memory.

    Attributes:
      saved: on the device; None if `data` holds it.
      pages: that belong to it, on the device.
      data: the state and its pages as bytes; None if `saved` holds it.
    """

    saved: Saved | None = None
    pages: tuple[int, ...] = ()
    data: bytes | None = None


class Carries:
    """Snapshots, the least recently used of which go when there is no room.

    Args:
      executor: whose rows they are of.
      pool: the pages of its rows.
      size: bytes of all snapshots in memory, and of all in the folder; 0 keeps none.
      folder: where those stand that have no room in memory, and all at the end; None for none.
      live: how many stay on the device.
      kind: what else two snapshots must have in common.
    """

    def __init__(
        self,
        executor: Executor,
        pool: Pages,
        size: int,
        folder: Path | None = None,
        live: int = 0,
        kind: str = "",
    ) -> None:
        self._executor, self._pool, self._size, self._most_live = executor, pool, size, live
        self._seed = hashlib.sha256(f"{executor.fingerprint} {kind}".encode())
        self._state_bytes, self._page_bytes = executor.row_bytes()
        self._folder = Folder(folder if size else None, size)
        self._memory: collections.OrderedDict[Key, Snapshot] = collections.OrderedDict()
        self._live: dict[Key, None] = {}  # in the order of their last use, as those in memory
        self._unwritten: dict[Key, None] = {}
        self._shares, self._lengths = Tally(), Tally()
        self._host_bytes = 0
        self._prompts: collections.deque[np.ndarray] = collections.deque(maxlen=RECENT)

    def __len__(self) -> int:
        return len(self._memory.keys() | set(self._folder))

    @property
    def bytes(self) -> int:
        """Bytes of all snapshots in memory; a page that several share counts once."""
        on_device = len(self._live) * self._state_bytes + len(self._shares) * self._page_bytes
        return on_device + self._host_bytes

    @property
    def lone_pages(self) -> int:
        """Pages that would be free without snapshots."""
        return sum(self._pool.holders(page) == count for page, count in self._shares.items())

    def put(self, tokens: Sequence[int], row: int, pages: Sequence[int]) -> None:
        """Remembers the state of a row.

        Args:
          tokens: all that it has read.
          row: its number.
          pages: in which they stand.
        """
        if not self._size or not tokens:
            return
        key = next(self._keys(tokens, [len(tokens)]))
        if key in self._memory:
            self._used(key)
            return
        snapshot = self._add(key, Snapshot())
        self._pool.hold(pages)
        self._lives(key, snapshot, self._executor.save(row), tuple(pages))
        if self._folder.keeps and key not in self._folder:
            self._unwritten[key] = None
        self._trim()

    def find(self, tokens: Sequence[int]) -> tuple[int, Saved | None, tuple[int, ...]]:
        """The longest remembered beginning of some tokens.

        Returns:
          How many tokens it is of, the state, and its pages, of which the caller is a holder; none
          of 0 tokens if nothing is remembered.
        """
        lengths = self._lengths.keys() | self._folder.lengths.keys()
        lengths = sorted(length for length in lengths if length <= len(tokens))
        for key in reversed(list(self._keys(tokens, lengths))):
            snapshot = self._memory.get(key) or self._from_folder(key)
            if snapshot is not None and self._wake(key, snapshot):
                saved, pages = snapshot.saved, snapshot.pages
                self._pool.hold(pages)
                self._used(key)
                self._trim()
                return key[0], saved, pages
        self._trim()  # what was read from the folder, and found no room on the device
        return 0, None, ()

    def parts(self, prompt: Sequence[int]) -> int:
        """How many first tokens a prompt shares with one before it, and remembers it as well."""
        ids = np.asarray(prompt, np.int32)
        longest = max((_common(ids, other) for other in self._prompts), default=0)
        if self._size:
            self._prompts.append(ids)
        return longest

    def give_up_pages(self) -> bool:
        """Makes pages free: the least recently used snapshot with pages leaves the device.

        Returns:
          Whether there was one.
        """
        key = next((key for key in self._live if self._memory[key].pages), None)
        if key is None:
            return False
        self._to_host(key)
        self._trim()
        return True

    def leave_device(self) -> None:
        """All snapshots leave the device."""
        while self._live:
            self._to_host(next(iter(self._live)))
        self._trim()

    def settle(self) -> bool:
        """Writes one snapshot to the folder that is not there; False if there is none."""
        key = next(reversed(self._unwritten), None)
        if key is None:
            return False
        self._write(key)
        return True

    def close(self) -> None:
        """Writes all that are not in the folder, and forgets those in memory."""
        while self._memory:
            self._drop(next(iter(self._memory)))

    def _keys(self, tokens: Sequence[int], lengths: Sequence[int]) -> Iterator[Key]:
        """Keys of the first tokens, for each of some rising numbers of them."""
        ids, found, start = np.asarray(tokens, "<i4"), self._seed.copy(), 0
        for length in lengths:
            found.update(ids[start:length].tobytes())
            start = length
            yield length, found.digest()[:16]

    def _add(self, key: Key, snapshot: Snapshot) -> Snapshot:
        self._memory[key] = snapshot
        self._lengths[key[0]] += 1
        return snapshot

    def _used(self, key: Key) -> None:
        self._memory.move_to_end(key)
        if key in self._live:
            self._live[key] = self._live.pop(key)

    def _lives(self, key: Key, snapshot: Snapshot, saved: Saved, pages: tuple[int, ...]) -> None:
        """Takes the caller's part in the pages."""
        snapshot.saved, snapshot.pages = saved, pages
        self._live[key] = None
        self._shares.update(pages)

    def _leaves(self, key: Key, snapshot: Snapshot) -> None:
        """The inverse."""
        if key in self._live:
            del self._live[key]
            self._shares.less(snapshot.pages)
            self._pool.release(snapshot.pages)
            snapshot.saved, snapshot.pages = None, ()

    def _wake(self, key: Key, snapshot: Snapshot) -> bool:
        """Puts a snapshot on the device; False if there is no room, or it is damaged."""
        if key in self._live:
            return True
        assert snapshot.data is not None
        need = pages_of(key[0], self._executor.sizes.page)
        self._used(key)
        while self._pool.free < need and self.give_up_pages():
            if key not in self._memory:
                return False
        if self._pool.free < need:
            return False
        pages = tuple(self._pool.take() for _ in range(need))
        try:
            saved = self._executor.from_bytes(snapshot.data, pages)
        except UserError:
            self._pool.release(pages)
            self._forget(key)
            self._folder.remove(key)
            return False
        self._host_bytes -= len(snapshot.data)
        snapshot.data = None
        self._lives(key, snapshot, saved, pages)
        return True

    def _to_host(self, key: Key) -> None:
        """Takes a snapshot from the device; its place among the others stays."""
        snapshot = self._memory[key]
        snapshot.data = self._executor.bytes_of(snapshot.saved, snapshot.pages)
        self._host_bytes += len(snapshot.data)
        self._leaves(key, snapshot)

    def _from_folder(self, key: Key) -> Snapshot | None:
        data = self._folder.read(key)
        if data is None:
            return None
        self._host_bytes += len(data)
        return self._add(key, Snapshot(data=data))

    def _trim(self) -> None:
        """Holds the number on the device, and the bytes in memory."""
        while len(self._live) > self._most_live:
            self._to_host(next(iter(self._live)))
        while self._memory and self.bytes > self._size:
            self._drop(next(iter(self._memory)))

    def _drop(self, key: Key) -> None:
        if key in self._unwritten:
            self._write(key)
        self._forget(key)

    def _forget(self, key: Key) -> None:
        snapshot = self._memory.pop(key)
        self._lengths.less([key[0]])
        self._unwritten.pop(key, None)
        self._host_bytes -= len(snapshot.data or b"")
        self._leaves(key, snapshot)

    def _write(self, key: Key) -> None:
        snapshot = self._memory[key]
        data = snapshot.data
        if data is None:
            data = self._executor.bytes_of(snapshot.saved, snapshot.pages)
        self._unwritten.pop(key)
        if not self._folder.write(key, data) and not self._folder.keeps:
            self._unwritten.clear()


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many first ids two prompts share."""
    size = min(len(one), len(other))
    apart = np.flatnonzero(one[:size] != other[:size])
    return int(apart[0]) if len(apart) else size
