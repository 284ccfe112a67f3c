"""JAX's plugins on a machine without their devices: JAX is told so, and they say nothing of it.

The packages that JAX uses accelerators with also hold their compilers (`sharding.topology`), so
they are installed on machines that have none. Loaded there, they print lines on standard error
that help nobody, and JAX tries them all before it takes the CPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Iterator

CHATTER = re.compile(rb"cudart_stub\.cc|before absl::InitializeLog\(\) is called")
PACKAGES = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
"""Plugins that may have no device here, but a compiler."""


def installed() -> list[str]:
    """Those of `PACKAGES` that are there."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is not None]


def load() -> None:
    """Imports JAX as a machine without accelerators should.

    Nothing is done where JAX is imported already, or where none of `PACKAGES` is installed. What
    JAX_PLATFORMS says holds, and a machine with an accelerator is left to JAX.
    """
    if "jax" in sys.modules or not installed():
        return
    with without_chatter():
        import jax
        from jax.experimental import topologies

        from sharding.machine import accelerators

        if accelerators():
            return
        if not jax.config.jax_platforms:  # type: ignore[attr-defined]
            jax.config.update("jax_platforms", "cpu")
        with contextlib.suppress(NotImplementedError):  # JAX loads its plugins before it looks
            topologies.get_topology_desc(platform="none")


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Standard error of what is inside, that of its native libraries too, less `CHATTER`."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)
        try:
            yield
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            heard.seek(0)
            for line in heard:
                if not CHATTER.search(line):
                    os.write(2, line)
