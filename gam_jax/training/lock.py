"""One run folder, one run: a lock that names its owner, and dies with it.

The lock is a file, `run.lock`, that says who holds it. Its owner touches it every few seconds.
Whoever finds it decides, without comparing any clocks:

- the owner is of this host (and of this boot and container) and lives: refused;
- it is of this host and is gone: taken over;
- it is of another host: the file is watched. Once it is touched: refused. If it stays untouched
  for `SILENT_SECONDS`, its owner is gone (a host that died): taken over;
- it is empty: a lock appears with its content, so its owner died where it had to be written in
  place, or its machine lost power. If it stays so for `EMPTY_SECONDS`: taken over.

An owner whose lock was taken over all the same, as one that was frozen for minutes and woke up,
ends at once: two runs never write into one folder for longer than `TOUCH_SECONDS`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from sharding import processes
from sharding.errors import UserError
from sharding.json_file import read_record

TOUCH_SECONDS = 5.0
SILENT_SECONDS = 120.0
"""Longer than file systems of several hosts take to show each other a changed time."""
EMPTY_SECONDS = 2.0
"""Longer than it takes to write one line."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Attributes:
      host: its name.
      place: host, boot and process namespace: where `pid` means something.
      pid: its number there.
      born: when it was started, by the kernel's count; numbers are used again.
      since: when it took the lock, seconds since 1970 (to be shown only).
    """

    host: str
    place: str
    pid: int
    born: str
    since: float

    @classmethod
    def this(cls) -> Owner:
        """This process, now."""
        pid = os.getpid()
        return cls(socket.gethostname(), _place(), pid, _born(pid) or "unknown", time.time())

    def __str__(self) -> str:
        age = max(0, round(time.time() - self.since))
        hours, minutes, seconds = age // 3600, age % 3600 // 60, age % 60
        shown = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
        return f"process {self.pid} on {self.host} (for {shown if age >= 60 else f'{age} s'})"


@contextlib.contextmanager
def run_lock(
    folder: pathlib.Path,
    say: Callable[[str], None],
    silent_seconds: float = SILENT_SECONDS,
    touch_seconds: float = TOUCH_SECONDS,
) -> Iterator[None]:
    """Holds the lock of a run folder while open, which is made if it is not there.

    All processes of a job enter; the first of them holds the lock, and if it is refused all are.

    Args:
      folder: of the run.
      say: tells a person in one line.
      silent_seconds: how long a lock of another host must be untouched to be taken over.
      touch_seconds: how often the owner touches it.

    Raises:
      UserError: another run holds it, or the folder cannot be written.
    """
    lock = _Lock(folder, silent_seconds, touch_seconds)
    problem = ""
    if processes.is_first():
        try:
            lock.take(say)
        except UserError as error:
            problem = str(error)
    if problem := processes.first_said(problem):
        raise UserError(problem)
    try:
        yield
    finally:
        if processes.is_first():
            lock.release()


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A lock as it was found: when it was touched, its bytes, and who it names."""

    touched: int
    size: int
    owner: Owner | None


class _Lock:
    """The first process's side."""

    def __init__(self, folder: pathlib.Path, silent_seconds: float, touch_seconds: float) -> None:
        self._folder, self._path = folder, folder / "run.lock"
        self._silent, self._touch = silent_seconds, touch_seconds
        self._made: list[pathlib.Path] = []
        self._owner = Owner.this()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def take(self, say: Callable[[str], None]) -> None:
        try:
            self._make_folder()
            while not self._create():
                with contextlib.suppress(FileNotFoundError):  # it has just been given back
                    self._remove(self._judge(say))
        except OSError as error:
            raise UserError(f"cannot write the run folder {self._folder}: {error}") from error
        self._thread.start()

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        if _read(self._path) == self._owner:
            self._path.unlink(missing_ok=True)
        for folder in self._made:  # a run that never began leaves nothing behind
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _make_folder(self) -> None:
        missing = [p for p in (self._folder, *self._folder.parents) if not p.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        self._made = missing

    def _create(self) -> bool:
        """Makes the lock with its content at once; False if there is one."""
        own = self._path.with_name(f"{self._path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            own.write_text(json.dumps(dataclasses.asdict(self._owner)) + "\n")
            try:
                os.link(own, self._path)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                return self._create_in_place()
            return True
        finally:
            own.unlink(missing_ok=True)

    def _create_in_place(self) -> bool:
        try:
            with self._path.open("x") as file:
                try:
                    file.write(json.dumps(dataclasses.asdict(self._owner)) + "\n")
                    file.flush()
                except OSError:
                    self._path.unlink()
                    raise
        except FileExistsError:
            return False
        return True

    def _judge(self, say: Callable[[str], None]) -> _Seen:
        """The lock there is, whose owner is gone; raises if it is not."""
        seen = self._look()
        owner = seen.owner
        if owner is not None and owner.place == self._owner.place:
            if _born(owner.pid) == owner.born:
                raise self._refused(owner)
            say(f"taking over {self._folder} from {owner}, which is gone")
            return seen
        shown = str(owner) if owner else "a process that did not say who it is"
        silent = self._silent if seen.size else min(self._silent, EMPTY_SECONDS)
        say(
            f"{self._folder} is held by {shown}; taking it over if there is no sign of "
            f"life for {silent:.0f} s"
        )
        deadline = time.monotonic() + silent
        while time.monotonic() < deadline:
            time.sleep(min(0.5, silent / 4))
            if (now := self._look()) != seen:
                raise self._refused(now.owner or owner)
        say(f"taking over {self._folder} from {shown}: no sign of life")
        return seen

    def _look(self) -> _Seen:
        found = self._path.stat()
        return _Seen(found.st_mtime_ns, found.st_size, _read(self._path))

    def _remove(self, seen: _Seen) -> None:
        """Takes the judged lock away, and not one that another has made in its place by now."""
        with _alone(self._folder):
            if self._look() == seen:
                self._path.unlink()

    def _refused(self, owner: Owner | None) -> UserError:
        return UserError(
            f"{self._folder} is in use by {owner or 'another run'}: wait for it or stop it, or "
            f"name another folder with --run"
        )

    def _keep(self) -> None:
        while not self._ended.wait(self._touch):
            with contextlib.suppress(OSError):  # a file system that is away for a while
                if (owner := _read(self._path)) not in (None, self._owner):
                    sys.stderr.write(f"error: {self._folder} was taken over by {owner}: ending\n")
                    sys.stderr.flush()
                    os._exit(1)
                os.utime(self._path)


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
    """While open, no other process that asks for it; a file system that cannot do it is let be."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read(path: pathlib.Path) -> Owner | None:
    """Who a lock names; None if nobody, as while it is being written."""
    try:
        return read_record(path, Owner)
    except (OSError, ValueError, TypeError):
        return None


def _place() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):  # where there is no /proc, the name must do
        parts.append(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _born(pid: int) -> str | None:
    """When a living process of this host was started; None if there is none of that number."""
    try:
        state, *fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        if pathlib.Path("/proc/self").exists():
            return None
        return _born_without_proc(pid)
    return None if state in "ZX" else fields[18]


def _born_without_proc(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it lives, and is another's
    return "unknown"
