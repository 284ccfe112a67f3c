"""Runs a command as several processes on this host, joined into one job, and watches them.

  python -m experiments.launch --processes=2 --devices-per-process=4 -- \\
    python -m experiments.train --mesh=data=-1

Each line that a process prints is shown with its rank before it. When one ends badly the others
are ended too, and its exit code is returned. Ctrl-C and SIGTERM are passed on to all: the
training command saves and leaves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from absl import flags

from experiments import cli
from sharding import processes
from sharding.errors import UserError

POLL_SECONDS = 0.05


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_integer("processes", 2, "How many processes.", 1)
    flags.DEFINE_integer(
        "devices_per_process", 0, "Emulated CPU devices of each; 0 to use the real devices.", 0
    )
    flags.DEFINE_alias("devices-per-process", "devices_per_process")
    flags.DEFINE_float("grace", 10.0, "Seconds that processes have to end when asked to.", 0)


def main(*command: str) -> None:
    """Starts the job, waits for it, and exits with its code."""
    args = flags.FLAGS
    if shutil.which(command[0]) is None:
        raise UserError(f"no program '{command[0]}': give the command to run after --")
    job = Job(command, args.processes, args.devices_per_process, args.grace)
    sys.exit(job.run())


@dataclasses.dataclass(frozen=True)
class Death:
    """The first process that ended badly.

    Attributes:
      rank: which one.
      code: its exit code, or minus the signal that ended it.
    """

    rank: int
    code: int

    def __str__(self) -> str:
        if self.code < 0:
            return f"process {self.rank} was ended by {signal.Signals(-self.code).name}"
        return f"process {self.rank} ended with exit code {self.code}"

    @property
    def exit_code(self) -> int:
        """As a shell would say it."""
        return 128 - self.code if self.code < 0 else self.code


class Job:
    """Processes of one command, joined by the variables of `sharding.processes`.

    Args:
      command: program and arguments.
      count: processes.
      devices: emulated CPU devices of each; 0 for the real ones.
      grace: seconds between asking to end and killing.
    """

    def __init__(self, command: Sequence[str], count: int, devices: int, grace: float) -> None:
        self._command, self._count, self._devices, self._grace = command, count, devices, grace
        self._children: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        self._asked = 0

    def run(self) -> int:
        """Starts all and waits; the exit code of the first that ended badly, or 0."""
        before = {n: signal.signal(n, self._pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._start()
            death = self._wait()
            if death is not None:
                ending = "" if self._asked else "; ending the others"
                print(f"launch: {death}{ending}", file=sys.stderr, flush=True)
            return death.exit_code if death else 0
        finally:
            self._stop()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        address = f"localhost:{free_port()}"
        for rank in range(self._count):
            self._children.append(
                subprocess.Popen(
                    self._command,
                    env=self._environment(address, rank),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # so that all that a process started ends with it
                )
            )
        for rank, child in enumerate(self._children):
            for pipe, out in ((child.stdout, sys.stdout), (child.stderr, sys.stderr)):
                reader = threading.Thread(target=_copy, args=(pipe, out, f"[{rank}] "), daemon=True)
                reader.start()
                self._readers.append(reader)

    def _environment(self, address: str, rank: int) -> Mapping[str, str]:
        emulated = {processes.EMULATE: str(self._devices)} if self._devices else {}
        return {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            processes.ADDRESS: address,
            processes.COUNT: str(self._count),
            processes.RANK: str(rank),
            **emulated,
        }

    def _wait(self) -> Death | None:
        """Until all have ended well, or one has not."""
        while True:
            codes = [child.poll() for child in self._children]
            if bad := [Death(rank, code) for rank, code in enumerate(codes) if code]:
                # Those who miss a dead process abort by themselves: the killed one is the cause.
                return min(bad, key=lambda death: (death.code != -signal.SIGKILL, death.rank))
            if all(code == 0 for code in codes):
                return None
            time.sleep(POLL_SECONDS)

    def _stop(self) -> None:
        """Asks the processes that are left to end, kills those that do not, and reads the rest."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + self._grace
        while time.monotonic() < deadline and any(c.poll() is None for c in self._children):
            time.sleep(POLL_SECONDS)
        for child in self._children:
            _signal_group(child, signal.SIGKILL)
            child.wait()
        for reader in self._readers:
            reader.join(timeout=1)

    def _signal(self, number: int) -> None:
        for child in self._children:
            if child.poll() is None:
                _signal_group(child, number)

    def _pass_on(self, number: int, frame: object) -> None:
        """The first signal asks all to end well; the second ends them at once."""
        self._asked += 1
        self._signal(number if self._asked == 1 else signal.SIGKILL)


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _signal_group(child: subprocess.Popen[str], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended, and all that it started
        os.killpg(child.pid, number)


def _copy(pipe: IO[str], out: IO[str], prefix: str) -> None:
    for line in pipe:
        if "[Gloo] Rank" in line or "connected peer ranks" in line:
            continue  # it counts its connections on standard output, from several threads at once
        out.write(f"{prefix}{line.rstrip()}\n")
        out.flush()


if __name__ == "__main__":
    cli.run(main, define_flags, takes_command=True)
