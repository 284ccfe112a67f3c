"""What is told of an error that nobody expected: a full disk, or the program's own fault."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import tempfile
import traceback

from sharding.errors import one_line

FAULT = 70
"""The exit code of a fault of the program itself, as sysexits.h has it."""


FULL = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file would be larger than is allowed",
    errno.EROFS: "the disk can only be read",
}
"""Why nothing can be written, by number: nobody's fault in here."""


def reason(error: Exception) -> str:
    """Why something could not be written or read, in a few words."""
    if isinstance(error, OSError) and error.errno is not None:
        return FULL.get(error.errno, os.strerror(error.errno))
    return " ".join(str(error).split())[:160]


def full_disk(error: BaseException | None) -> str | None:
    """One line if an error comes from a disk that takes no more; else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            where = error.filename or "what was to be written"
            return f"cannot write {where}: {reason(error)}; make room there or name another place"
        error = error.__cause__ or error.__context__
    return None


def shortage(error: BaseException) -> str | None:
    """One line if this machine has too little disk or memory for what was asked; else None."""
    if isinstance(error, MemoryError):
        what = f" ({one_line(str(error))})" if str(error) else ""
        return f"no memory is left for what was asked{what}: ask for less, or of a larger machine"
    return full_disk(error)


def tell_fault(error: BaseException) -> int:
    """Says in one line that the program is at fault, and where the trace is.

    Returns:
      The exit code.
    """
    trace = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            prefix="gam_fault_",
            suffix=".txt",
            delete=False,
            encoding="utf-8",
            errors="replace",
        ) as file:
            file.write(f"{shlex.join(sys.argv)}\n\n{trace}")
        where = f"the trace is in {file.name}"
    except OSError as failed:
        print(trace, file=sys.stderr)
        where = f"the trace stands above ({failed.strerror})"
    message = one_line(str(error))[:200]
    what = f"{type(error).__name__}: {message}" if message else type(error).__name__
    print(f"error: a fault of this program, {what}; {where}", file=sys.stderr, flush=True)
    return FAULT
