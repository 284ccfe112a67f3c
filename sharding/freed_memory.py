"""What the C library does with memory that is given back to it.

A step on a processor takes and gives back the same arrays again and again. The GNU C library
returns large ones to the system each time, which then clears their pages anew: a third of a small
training run's processor time.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

TRIM, MAPPED, ARENAS = -1, -4, -8
"""Parameters of mallopt(3): M_TRIM_THRESHOLD, M_MMAP_MAX and M_ARENA_MAX."""
OWN = ("MALLOC_ARENA_MAX", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")
TUNABLES, TUNED = "GLIBC_TUNABLES", ("arena_max", "mmap_max", "trim_threshold")
"""Variables by which somebody may have chosen otherwise, and words in the last one that do."""


def keep_freed(environ: Mapping[str, str] = os.environ) -> bool:
    """Keeps freed memory in the process, for the arrays that come next.

    The process then holds at its end what it held at most. It is asked for before the first arrays
    are made, by programs alone: a library should leave it to whoever imports it.

    Args:
      environ: nothing is changed where it has a choice of somebody's own.

    Returns:
      Whether the C library does so: False where it is another, or somebody has chosen otherwise.
    """
    chosen = any(name in environ for name in OWN) or any(
        f"glibc.malloc.{word}" in environ.get(TUNABLES, "") for word in TUNED
    )
    if chosen or not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, as musl
        return False
    wanted = {ARENAS: 1, MAPPED: 0, TRIM: 2**31 - 1}
    done = [mallopt(name, value) for name, value in wanted.items()]
    return all(done)
