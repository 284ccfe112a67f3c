"""What a process tells the launcher that watches it: that it lives, and how far it is.

One small file for each rank, replaced whole, in the folder that `experiments.launch` names in the
environment. A thread writes it, so a process that waits for others still beats, and one that is
frozen does not; what the thread writes is where the main thread is, so that one which waits for
ever can be told from one that works.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import threading

from sharding import processes
from sharding.json_file import read_record

FOLDER = "GAM_JAX_HEARTBEATS"
"""Where to write; nobody listens if it is not set."""
BEAT_SECONDS = 0.5

TRAINING = "training"
"""The phase in which every step takes about as long as the one before. Others may take long once:
starting (and compiling), validating, saving, ending."""


@dataclasses.dataclass(frozen=True)
class Beat:
    """The state of one process.

    Attributes:
      rank, host, pid: who.
      devices: how many it has; 0 until it knows.
      phase: what the main thread is doing.
      step: updates done.
      count: how often the main thread has come by.
      alive: how often the thread has written.
    """

    rank: int
    host: str
    pid: int
    devices: int = 0
    phase: str = "starting"
    step: int = 0
    count: int = 0
    alive: int = 0


class Heartbeat:
    """This process's side; while open, its thread writes.

    Args:
      folder: of the files; None beats for nobody.
      rank: of this process.
    """

    def __init__(self, folder: pathlib.Path | None, rank: int = 0) -> None:
        self._path = folder and folder / f"{rank}.json"
        self._beat = Beat(rank, socket.gethostname(), os.getpid())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    @classmethod
    def from_environment(cls) -> Heartbeat:
        """For the launcher that started this process, if one did."""
        folder = os.environ.get(FOLDER)
        rank = os.environ.get(processes.RANK, "0")
        if not folder or not rank.isdecimal():
            return cls(None)
        return cls(pathlib.Path(folder), int(rank))

    def __enter__(self) -> Heartbeat:
        if self._path is not None:
            self._write()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._path is not None:
            self._thread.join()
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)  # from here on nobody judges this process

    def beat(self, step: int, phase: str) -> None:
        """The main thread comes by."""
        count = self._beat.count + 1
        self._beat = dataclasses.replace(self._beat, step=step, phase=phase, count=count)

    def has(self, devices: int) -> None:
        """This process has found its devices."""
        self._beat = dataclasses.replace(self._beat, devices=devices)

    def _keep(self) -> None:
        alive = 0
        while not self._ended.wait(BEAT_SECONDS):
            alive += 1
            self._write(alive)

    def _write(self, alive: int = 0) -> None:
        if self._path is None:
            return
        beat = dataclasses.replace(self._beat, alive=alive)
        with contextlib.suppress(OSError):  # the launcher has gone, or its disk is full
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(dataclasses.asdict(beat)))
            os.replace(partial, self._path)


def read_beats(folder: pathlib.Path) -> dict[int, Beat]:
    """The last beat of each process that has written one, by rank."""
    beats = {}
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            beat = read_record(path, Beat)
            beats[beat.rank] = beat
    return beats
