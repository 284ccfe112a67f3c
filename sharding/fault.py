"""What is told where the program itself is at fault."""

from __future__ import annotations

import shlex
import sys
import tempfile
import traceback

FAULT = 70
"""The exit code of a fault of the program itself, as sysexits.h has it."""


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
    message = " ".join(str(error).split())[:200].encode(errors="backslashreplace").decode()
    what = f"{type(error).__name__}: {message}" if message else type(error).__name__
    print(f"error: a fault of this program, {what}; {where}", file=sys.stderr, flush=True)
    return FAULT
