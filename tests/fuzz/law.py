"""The law: whatever is given ends in one line and code 2, or is taken."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
from absl import flags
from jax._src import compiler

from experiments import command
from experiments.study import found
from sharding.errors import UserError

SECONDS = 20
"""Of processor time, and three times as long by the clock, after which a case hangs."""
MEMORY = 3 << 30
"""Bytes that a case may ask for beyond what the process holds."""
SMALL = 40
"""Operations of a program that is compiled all the same: a number is converted, a key made."""
LONGEST = 1500
"""Signs of a line that a person still reads."""
OURS = re.compile(r"(gam_jax|sharding|experiments)/\S+\.py")


class Begun(BaseException):
    """Nothing was refused: what would begin now is long."""


class Hangs(BaseException):
    """A case takes too long."""


class FellShort(Exception):
    """How a case broke the law."""


@contextlib.contextmanager
def nothing_long(patch: pytest.MonkeyPatch, place: pathlib.Path) -> Iterator[None]:
    """While open, whatever compiles, starts a process or uses the network is `Begun` instead."""
    compile_now = compiler.compile_or_get_cached

    def compile_small(backend: Any, program: Any, *rest: Any, **named: Any) -> Any:
        if str(program).count("\n") > SMALL:
            raise Begun("compiles")
        return compile_now(backend, program, *rest, **named)

    def begins(*_: object, **__: object) -> NoReturn:
        raise Begun("leaves the process")

    elsewhere = place.parent / "found"
    with patch.context() as inside:
        inside.setattr(compiler, "compile_or_get_cached", compile_small)
        inside.setattr(subprocess.Popen, "__init__", begins)
        inside.setattr(socket.socket, "connect", begins)
        inside.setattr(socket, "getaddrinfo", begins)
        inside.setattr(tempfile, "tempdir", str(place.parent))
        inside.setattr(found.read, "__defaults__", (elsewhere,))
        inside.setattr(found.merge, "__defaults__", (elsewhere,))
        inside.chdir(place)
        yield


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """While open, much memory is refused by the system, and long work is cut off."""

    def hangs(*_: object) -> NoReturn:
        raise Hangs

    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = {number: signal.signal(number, hangs) for number in (signal.SIGPROF, signal.SIGALRM)}
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 3 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in before.items():
            signal.signal(number, handler)


def verdict(call: Callable[[], object], place: pathlib.Path) -> str:
    """Whether a call is "refused" in one line with nothing written, or "taken".

    Args:
      call: returns, ends as a command does, or raises a UserError.
      place: the folder that it may write into where it is not refused.

    Raises:
      FellShort: it did anything else.
    """
    before = seen(place)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", e) for e in ("strict", "backslashreplace"))
    code: Any = 0
    try:
        with (
            limits(),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            call()
    except Begun:
        return "taken"
    except UserError as error:
        one_line(f"error: {error}")
        code = 2
    except SystemExit as ended:
        code = 0 if ended.code is None else ended.code
        err.flush()
        told = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
        if code == 2:
            one_line(told)
        elif code not in (0, 1):
            raise FellShort(f"code {code}: {_cause(told)}") from None
        elif code == 1 and "error: " in told:
            raise FellShort(f"code 1: {told[-300:]}") from None
    except Hangs as error:
        raise FellShort(f"hangs in {_where(error)}") from None
    except BaseException as error:
        raise FellShort(f"{type(error).__name__} in {_where(error)}: {str(error)[:160]}") from None
    after = seen(place)
    if code == 2 and after != before:
        raise FellShort(f"refused, and left {sorted(after.items() ^ before.items())[:4]}")
    return "taken" if code != 2 else "refused"


def one_line(told: str) -> None:
    """Refuses what is not one line that begins with "error: ", after lines of progress."""
    lines = told.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if len(errors) != 1 or "Traceback" in told or not lines[-1].startswith("error: "):
        raise FellShort(f"not one line: {told[-400:]!r}")
    if len(errors[0]) > LONGEST:
        raise FellShort(f"a line of {len(errors[0]):,} signs: {errors[0][:200]!r}")


def seen(place: pathlib.Path) -> dict[str, tuple[int, int]]:
    """What a folder holds, but for what is kept of texts: size and time of change by path."""
    found = {}
    for folder, inside, names in os.walk(place):
        if folder == str(place) and "data" in inside:
            inside.remove("data")
        for name in [*names, *inside]:
            path = os.path.join(folder, name)
            facts = os.lstat(path)
            is_file = name in names
            found[os.path.relpath(path, place)] = (
                (facts.st_size, facts.st_mtime_ns) if is_file else (0, 0)
            )
    return found


def gam(*words: str) -> None:
    """A command as a person types it, in this process; it ends by SystemExit."""
    argv, before = sys.argv, set(flags.FLAGS)
    sys.argv = ["gam", *words]
    try:
        command.main()
    finally:
        sys.argv = argv
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
    sys.exit(0)


def _where(error: BaseException) -> str:
    """The innermost place in this project."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if OURS.search(f.filename)]
    if not ours:
        return "no file of ours"
    found = OURS.search(ours[-1].filename)
    return f"{found[0] if found else ''}:{ours[-1].lineno}"


def _cause(told: str) -> str:
    """What a fault of the program was, from the trace that it left."""
    path = re.search(r"the trace is in (\S+\.txt)", told)
    if path is None:
        return told[-300:]
    trace = pathlib.Path(path[1]).read_text()
    pathlib.Path(path[1]).unlink()
    ours = re.findall(r'File "\S*?((?:gam_jax|sharding|experiments)/\S+\.py)", line (\d+)', trace)
    where = ":".join(ours[-1]) if ours else "?"
    raised = [
        line for line in trace.splitlines() if re.match(r"[\w.]+(Error|Exception|Warning)", line)
    ]
    last = raised[-1] if raised else trace.strip().splitlines()[-1]
    return f"{where} {last[:200]} [{trace.splitlines()[0][:200]}]"
