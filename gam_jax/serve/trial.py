"""Whether a grammar compiles in little time, tried in a process that can be ended.

A few characters can ask for automata of millions of states, such as numbers that are a multiple of
1,234,567, and llguidance has no limit of its own for the time that it takes to build them.
"""

from __future__ import annotations

import signal
import subprocess
import sys

from sharding.errors import UserError, one_line

SECONDS = 2.0
"""Of a processor, that a grammar may take to compile."""
TIMES = 10
"""As many seconds by the clock on the wall: other work may stand before it."""
MEMORY = 2**30
"""Bytes that it may need, the process's own among them."""
ENDED = (-signal.SIGPROF, -signal.SIGXCPU, -signal.SIGABRT)
"""How a process ends that has no more time, or whose library gets no more memory."""
PROGRAM = f"""
import contextlib, os, resource, signal, sys
import llguidance
os.nice(10)
with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
grammar = sys.stdin.buffer.read().decode()
signal.setitimer(signal.ITIMER_PROF, float(sys.argv[1]))
matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
sys.stdout.buffer.write(matcher.get_error().encode())
"""
"""What that process does: it writes why a grammar is none."""


def check_grammar(name: str, grammar: str) -> None:
    """Compiles a grammar in a process of its own, over bytes.

    Args:
      name: of the field that asked for it.
      grammar: as llguidance has it.

    Raises:
      UserError: what is wrong with it; or that it takes more than `SECONDS` of a processor, or more
        than `MEMORY`.
      RuntimeError: the process failed for another reason, such as a library that is not there.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM, str(SECONDS)],
            input=grammar.encode(),
            capture_output=True,
            timeout=TIMES * SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        done = None
    said = "" if done is None else done.stderr.decode(errors="replace").strip()
    last = said.rpartition("\n")[2]
    if done is None or done.returncode in ENDED or last.startswith("MemoryError"):
        raise UserError(
            f"{name}: it takes more than {SECONDS:g} seconds or {MEMORY >> 20:,} MiB to compile: "
            f"make it simpler"
        )
    if done.returncode:
        raise RuntimeError(f"{name} was not tried, code {done.returncode}: {last[:200]}")
    if done.stdout:
        raise UserError(f"{name}: {one_line(done.stdout.decode())}")
