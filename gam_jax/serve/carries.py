"""What was read once and need not be read again: states of rows after some first tokens.

A snapshot is found by a hash of the model and of all tokens that it has read, so what is found is
the state after just these tokens. It lives on the device first, where its pages are shared with
the rows that go on from it; then, as bytes, in the host's memory; and last in a folder.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gam_jax.data.storage import say, written_whole
from gam_jax.serve.executor import Executor, Saved
from gam_jax.serve.pages import Pages, pages_of
from sharding.errors import UserError

SUFFIX = ".carry"
RECENT = 128
"""Prompts that are remembered, to see where a new one parts from them."""
SUM = hashlib.sha256().digest_size

Key = tuple[int, bytes]
"""How many tokens were read, and the hash of them."""


@dataclasses.dataclass
class Snapshot:
    """A state of a row, on the device or in the host's memory.

    Attributes:
      saved: on the device; None if `data` holds it.
      pages: that belong to it, on the device.
      data: the state and its pages as bytes; None if `saved` holds it.
    """

    saved: Saved | None
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
        self._executor, self._pool, self._size, self._live = executor, pool, size, live
        self._folder = folder if size else None
        self._seed = hashlib.sha256(f"{executor.fingerprint} {kind}".encode())
        self._state_bytes, self._page_bytes = executor.row_bytes()
        self._memory: collections.OrderedDict[Key, Snapshot] = collections.OrderedDict()
        self._shares: collections.Counter[int] = collections.Counter()
        self._host_bytes = 0
        self._files: collections.OrderedDict[Key, int] = collections.OrderedDict()
        self._prompts: collections.deque[np.ndarray] = collections.deque(maxlen=RECENT)
        if self._folder is not None:
            self._files.update(_files_in(self._folder))
            self._trim_folder()

    def __len__(self) -> int:
        return len(self._memory.keys() | self._files.keys())

    @property
    def bytes(self) -> int:
        """Bytes of all snapshots in memory; a page that several share counts once."""
        live = sum(snapshot.saved is not None for snapshot in self._memory.values())
        return live * self._state_bytes + len(self._shares) * self._page_bytes + self._host_bytes

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
            self._memory.move_to_end(key)
            return
        self._pool.hold(pages)
        self._memory[key] = Snapshot(self._executor.save(row), tuple(pages))
        self._shares.update(pages)
        self._trim()

    def find(self, tokens: Sequence[int]) -> tuple[int, Saved, tuple[int, ...]]:
        """The longest remembered beginning of some tokens.

        Returns:
          How many tokens it is of, the state, and its pages, of which the caller is a holder; none
          of 0 tokens if nothing is remembered.
        """
        lengths = {length for length, _ in (*self._memory, *self._files) if length <= len(tokens)}
        for key in reversed(list(self._keys(tokens, sorted(lengths)))):
            snapshot = self._memory.get(key)
            if snapshot is None and key in self._files:
                snapshot = self._read(key)
            if snapshot is not None and self._wake(key, snapshot):
                pages = snapshot.pages
                self._pool.hold(pages)
                saved = snapshot.saved
                self._trim()
                return key[0], saved, pages
        return 0, None, ()

    def parts(self, prompt: Sequence[int]) -> int:
        """How many first tokens a prompt shares with one before it, and remembers it as well."""
        ids = np.asarray(prompt, np.int32)
        longest = max((_common(ids, other) for other in self._prompts), default=0)
        if self._size:
            self._prompts.append(ids)
        return longest

    def give_up_pages(self) -> bool:
        """Makes pages free: the least recently used snapshot on the device leaves it.

        Returns:
          Whether there was one with pages.
        """
        key = next((key for key, snapshot in self._memory.items() if snapshot.pages), None)
        if key is None:
            return False
        self._to_host(key)
        self._trim()
        return True

    def settle(self) -> bool:
        """Writes one snapshot to the folder that is not there; False if there is none."""
        if self._folder is None:
            return False
        key = next((key for key in reversed(self._memory) if key not in self._files), None)
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

    def _release(self, snapshot: Snapshot) -> None:
        self._shares.subtract(snapshot.pages)
        self._shares = +self._shares
        self._pool.release(snapshot.pages)
        snapshot.pages, snapshot.saved = (), None

    def _wake(self, key: Key, snapshot: Snapshot) -> bool:
        """Puts a snapshot on the device, if it is not there and has room."""
        if snapshot.saved is None:
            assert snapshot.data is not None
            need = pages_of(key[0], self._executor.sizes.page)
            self._memory.pop(key, None)  # else it could be the one that leaves
            self._host_bytes -= len(snapshot.data)
            while self._pool.free < need and self.give_up_pages():
                pass
            if self._pool.free < need:
                self._keep(key, snapshot.data)
                return False
            pages = tuple(self._pool.take() for _ in range(need))
            try:
                saved = self._executor.from_bytes(snapshot.data, pages)
            except UserError:
                self._pool.release(pages)
                self._unlink(key)
                return False
            snapshot.saved, snapshot.pages, snapshot.data = saved, pages, None
            self._memory[key] = snapshot
            self._shares.update(pages)
        self._memory.move_to_end(key)
        return True

    def _to_host(self, key: Key) -> None:
        """Takes a snapshot from the device; its place among the others stays."""
        snapshot = self._memory[key]
        snapshot.data = self._executor.bytes_of(snapshot.saved, snapshot.pages)
        self._host_bytes += len(snapshot.data)
        self._release(snapshot)

    def _keep(self, key: Key, data: bytes) -> None:
        self._memory[key] = Snapshot(None, (), data)
        self._host_bytes += len(data)

    def _trim(self) -> None:
        """Holds the number on the device, and the bytes in memory."""
        live = [key for key, snapshot in self._memory.items() if snapshot.saved is not None]
        for key in live[: max(len(live) - self._live, 0)]:
            self._to_host(key)
        while self._memory and self.bytes > self._size:
            self._drop(next(iter(self._memory)))

    def _drop(self, key: Key) -> None:
        self._write(key)
        snapshot = self._memory.pop(key)
        self._host_bytes -= len(snapshot.data or b"")
        self._release(snapshot)

    def _write(self, key: Key) -> None:
        if self._folder is None or key in self._files:
            return
        snapshot = self._memory[key]
        data = snapshot.data
        if data is None:
            data = self._executor.bytes_of(snapshot.saved, snapshot.pages)
        if len(data) + SUM > self._size:
            return
        try:
            with written_whole(self._path(key)) as temporary:
                temporary.write_bytes(hashlib.sha256(data).digest() + data)
        except UserError as error:
            say(f"no more snapshots are written or read: {error}")
            self._folder = None
            self._files.clear()
            return
        self._files[key] = len(data) + SUM
        self._trim_folder()

    def _read(self, key: Key) -> Snapshot | None:
        """A snapshot of the folder, in memory; None if its file is damaged or gone."""
        content = b""
        with contextlib.suppress(OSError):
            content = self._path(key).read_bytes()
            os.utime(self._path(key))
        if hashlib.sha256(content[SUM:]).digest() != content[:SUM]:
            self._unlink(key)
            return None
        self._files.move_to_end(key)
        self._keep(key, content[SUM:])
        return self._memory[key]

    def _trim_folder(self) -> None:
        while sum(self._files.values()) > self._size:
            self._unlink(next(iter(self._files)))

    def _unlink(self, key: Key) -> None:
        if self._files.pop(key, None) is not None:
            with contextlib.suppress(OSError):
                self._path(key).unlink()

    def _path(self, key: Key) -> Path:
        assert self._folder is not None
        return self._folder / f"{key[0]}-{key[1].hex()}{SUFFIX}"


def _files_in(folder: Path) -> Iterator[tuple[Key, int]]:
    """Keys and bytes of the snapshots in a folder, the least recently used first."""
    if not folder.is_dir():
        return
    found = []
    for path in folder.glob(f"*{SUFFIX}"):
        length, _, name = path.name.removesuffix(SUFFIX).partition("-")
        with contextlib.suppress(ValueError, OSError):
            stat = path.stat()
            found.append((stat.st_mtime_ns, (int(length), bytes.fromhex(name)), stat.st_size))
    for _, key, size in sorted(found):
        yield key, size


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many first ids two prompts share."""
    size = min(len(one), len(other))
    apart = np.flatnonzero(one[:size] != other[:size])
    return int(apart[0]) if len(apart) else size
