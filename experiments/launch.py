"""Runs a command as several processes on this host, joined into one job, and watches them.

  gam launch --processes=2 --devices-per-process=4 -- \\
    gam train --mesh=data=-1
  gam launch --processes=4 --devices-per-process=2 --elastic -- \\
    gam train --run=runs/long --mesh=data=4,tensor=2

Each line that a process prints is shown with its rank before it. When one ends badly, or hangs,
the others are ended too, and its exit code is returned; with --elastic the run is started again
on the devices that are left (see `experiments.elastic`). Ctrl-C and SIGTERM are passed on to all:
the training command saves and leaves. If the launcher itself is killed, they are asked to end, and
killed after ten seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from absl import flags

from experiments import cli, elastic
from experiments.command import as_process
from experiments.guard import Guard
from experiments.hangs import Hang, Limits, Watch, named, where
from gam_jax.training import heartbeat
from sharding import processes
from sharding.errors import UserError

POLL_SECONDS = 0.05
LOOK_SECONDS = 0.25
SETTLE_SECONDS = 0.2
"""After a death, before it is asked who else has died: several may be killed at once."""
GUARD = 10
"""Seconds that processes have to end when their launcher is gone."""
HUNG = 124
"""Exit code of a job that hangs; that of `timeout`."""


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_integer("processes", 2, "How many processes.", 1)
    flags.DEFINE_integer(
        "devices_per_process", 0, "Emulated CPU devices of each; 0 to use the real devices.", 0
    )
    flags.DEFINE_float("grace", 10.0, "Seconds that processes have to end when asked to.", 0)
    flags.DEFINE_float(
        "hang",
        120.0,
        "Seconds without a heartbeat, or without a step, after which a process hangs; 0: never.",
        0,
    )
    flags.DEFINE_float(
        "hang_other", 1200.0, "Likewise while it starts, compiles, validates or saves.", 0
    )
    elastic.define_flags()


def main(*command: str) -> None:
    """Starts the job, waits for it, and exits with its code."""
    args, command = flags.FLAGS, as_process(command)
    if shutil.which(command[0]) is None:
        raise UserError(f"no program '{command[0]}': give the command to run after --")
    limits = Limits(args.hang, args.hang_other)
    with Signals() as signals:

        def run(command: Sequence[str], slots: Sequence[int], devices: int) -> Ending:
            if signals.asked:  # while a restart was being planned
                return Ending(128 + signal.SIGTERM, asked=True)
            grace = 0 if args.elastic else args.grace
            return Job(command, slots, devices, grace, limits, signals).run()

        slots = range(args.processes)
        if args.elastic:
            code = elastic.run(run, command, slots, args.devices_per_process)
        else:
            code = run(command, slots, args.devices_per_process).code
    sys.exit(code)


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a job ended.

    Attributes:
      code: 0, or the exit code of the first that ended badly, as a shell would say it.
      lost: ranks of those that are the cause; empty if it ended well, or if all hang alike.
      why: in words, empty if it ended well.
      asked: whether a signal had asked it to end.
      devices: of a process, as they said themselves; 0 if none has.
    """

    code: int
    lost: tuple[int, ...] = ()
    why: str = ""
    asked: bool = False
    devices: int = 0


class Signals:
    """While open, Ctrl-C and SIGTERM go to the children: once to end well, then at once."""

    def __init__(self) -> None:
        self.asked = 0
        self.children: Sequence[subprocess.Popen[str]] = ()

    def __enter__(self) -> Signals:
        self._before = {n: signal.signal(n, self._pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: object) -> None:
        self.asked += 1
        for child in self.children:
            if child.poll() is None:
                _signal_group(child, number if self.asked == 1 else signal.SIGKILL)


class Job:
    """Processes of one command, joined by the variables of `sharding.processes`.

    Args:
      command: program and arguments.
      slots: for each process, the place among the first job's processes that it has.
      devices: emulated CPU devices of each; 0 for the real ones.
      grace: seconds between asking to end and killing.
      limits: when a process hangs.
      signals: what a person asks for.
    """

    def __init__(
        self,
        command: Sequence[str],
        slots: Sequence[int],
        devices: int,
        grace: float,
        limits: Limits,
        signals: Signals,
    ) -> None:
        self._command, self._slots, self._devices = command, slots, devices
        self._grace, self._signals, self._watch = grace, signals, Watch(limits)
        self._children: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        self._beats: dict[int, heartbeat.Beat] = {}

    def run(self) -> Ending:
        """Starts all and waits until all have ended well, or one has not."""
        with tempfile.TemporaryDirectory(prefix="gam_jax_launch_") as folder, Guard(GUARD) as guard:
            try:
                self._start(folder, guard)
                ending = self._wait(pathlib.Path(folder))
                if ending.why:
                    others = "" if ending.asked or len(self._slots) == 1 else "; ending the others"
                    print(f"launch: {ending.why}{others}", file=sys.stderr, flush=True)
                return ending
            finally:
                self._stop()

    def _start(self, folder: str, guard: Guard) -> None:
        address = f"localhost:{free_port()}"
        for rank in range(len(self._slots)):
            self._children.append(
                subprocess.Popen(
                    self._command,
                    env=self._environment(address, rank, folder),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # so that all that a process started ends with it
                )
            )
            guard.watch(self._children[-1].pid)
            self._signals.children = self._children
        for rank, child in enumerate(self._children):
            for pipe, out in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
                reader = threading.Thread(target=_copy, args=(pipe, out, f"[{rank}] "), daemon=True)
                reader.start()
                self._readers.append(reader)

    def _environment(self, address: str, rank: int, folder: str) -> Mapping[str, str]:
        emulated = {processes.EMULATE: str(self._devices)} if self._devices else {}
        return {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            processes.ADDRESS: address,
            processes.COUNT: str(len(self._slots)),
            processes.RANK: str(rank),
            elastic.SLOT: str(self._slots[rank]),
            heartbeat.FOLDER: folder,
            **emulated,
        }

    def _wait(self, folder: pathlib.Path) -> Ending:
        looked = 0.0
        while True:
            codes = [child.poll() for child in self._children]
            if any(codes):
                time.sleep(SETTLE_SECONDS)
                self._read(folder)
                return self._death([child.poll() for child in self._children])
            if all(code == 0 for code in codes):
                return Ending(0, asked=self._asked)
            now = time.monotonic()
            if now - looked >= LOOK_SECONDS:
                looked = now
                self._read(folder)
                running = [rank for rank, code in enumerate(codes) if code is None]
                if (hang := self._watch.look(self._beats, running, now)) is not None:
                    return self._hang(hang)
            time.sleep(POLL_SECONDS)

    @property
    def _asked(self) -> bool:
        return self._signals.asked > 0

    @property
    def _known_devices(self) -> int:
        return max((beat.devices for beat in self._beats.values()), default=0)

    def _read(self, folder: pathlib.Path) -> None:
        self._beats.update(heartbeat.read_beats(folder))  # one that has left is remembered

    def _death(self, codes: Sequence[int | None]) -> Ending:
        """Those who miss a dead process abort by themselves: the killed ones are the cause."""
        bad = {rank: code for rank, code in enumerate(codes) if code}
        killed = tuple(rank for rank, code in bad.items() if code == -signal.SIGKILL)
        running = [rank for rank, code in enumerate(codes) if code is None]
        if not killed and (hang := self._watch.missed(running, time.monotonic())) is not None:
            return self._hang(hang)
        lost = killed or (min(bad),)
        why = "; ".join(self._ended(rank, bad[rank]) for rank in lost)
        code = bad[lost[0]]
        shell = 128 - code if code < 0 else code
        return Ending(shell, lost, why, self._asked, self._known_devices)

    def _ended(self, rank: int, code: int) -> str:
        beat = self._beats.get(rank)
        who, place = (f"process {rank}", "") if beat is None else (named(beat), f", {where(beat)}")
        if code < 0:
            return f"{who} was ended by {signal.Signals(-code).name}{place}"
        return f"{who} ended with exit code {code}{place}"

    def _hang(self, hang: Hang) -> Ending:
        lost = tuple(beat.rank for beat in hang.beats)
        for rank in lost:
            _signal_group(self._children[rank], signal.SIGKILL)
        why = f"{hang}: killed" if lost else str(hang)
        return Ending(HUNG, lost, why, self._asked, self._known_devices)

    def _stop(self) -> None:
        """Asks the processes that are left to end, kills those that do not, and reads the rest."""
        if self._grace:
            for child in self._children:
                if child.poll() is None:
                    _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + self._grace
        while time.monotonic() < deadline and any(c.poll() is None for c in self._children):
            time.sleep(POLL_SECONDS)
        for child in reversed(self._children):  # the first one last: the others would cry out
            _signal_group(child, signal.SIGKILL)
        for child in self._children:
            child.wait()
        for reader in self._readers:
            reader.join(timeout=1)


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _signal_group(child: subprocess.Popen[str], number: int) -> None:
    # It may have ended, with all that it started.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _copy(pipe: IO[str], out: IO[str], prefix: str) -> None:
    for line in pipe:
        if "[Gloo] Rank" in line or "connected peer ranks" in line:
            continue  # it counts its connections on standard output, from several threads at once
        out.write(f"{prefix}{line.rstrip()}\n")
        out.flush()


if __name__ == "__main__":
    cli.run(main, define_flags, takes_command=True)
