"""JAX's plugins on a machine without their devices: JAX is told so, and they say nothing of it.

The packages that JAX uses accelerators with also hold their compilers (`sharding.topology`), so
they are installed on machines that have none. Loaded there, they print lines on standard error
that help nobody, and JAX tries them all before it takes the CPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pkgutil
import re
import sys
import tempfile
from collections.abc import Iterator

CHATTER = re.compile(rb"cudart_stub\.cc|before absl::InitializeLog\(\) is called")
PACKAGES = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
"""Plugins that may have no device here, but a compiler."""
KNOWN = ("xla_cuda12", "xla_cuda13")
"""Those of them that are in the namespace `jax_plugins`, by their names there."""


def installed() -> list[str]:
    """Those of `PACKAGES` that are there."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is not None]


def others() -> list[str]:
    """Plugins of JAX for devices that are not looked for here, as those of other makers."""
    space = importlib.util.find_spec("jax_plugins")
    places = () if space is None else space.submodule_search_locations or ()
    return [found.name for found in pkgutil.iter_modules(places) if found.name not in KNOWN]


def load() -> None:
    """Imports JAX as a machine without accelerators should.

    Nothing is done where JAX is imported already, where none of `PACKAGES` is installed, or where
    there are plugins of other makers. What JAX_PLATFORMS says holds, and a machine with an
    accelerator is left to JAX.
    """
    if "jax" in sys.modules or not installed() or others():
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
    with contextlib.ExitStack() as stack:
        try:
            heard = stack.enter_context(tempfile.TemporaryFile())
            kept = os.dup(2)
        except OSError:  # there is no disk, or no standard error
            yield
            return
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
