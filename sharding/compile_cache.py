"""Compiled programs, kept on disk: the next process that needs one reads it.

JAX finds a program by what it says, by the versions of JAX and its compiler and by its flags. What
it does not look at is which processor the program was compiled for: one that knows fewer
instructions would end with an illegal one. So each kind of processor has a folder of its own.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import re

import jax

from sharding.errors import UserError
from sharding.paths import local_path

OFF = "off"
MOST_BYTES = 2 << 30
"""Of one folder; what was not read for longest goes."""
_TOLD = re.compile(
    r"^(model name|flags|Features|CPU (?:implementer|part))\s*:\s*(.*)$", re.MULTILINE
)
"""What /proc/cpuinfo says of a processor's instructions."""


def keep_programs(where: str = "") -> pathlib.Path | None:
    """Has JAX keep what it compiles from now on; call it before anything is compiled.

    Args:
      where: a folder; "off" for none; empty for one of this person's, unless JAX was told of a
        folder already (JAX_COMPILATION_CACHE_DIR), which is then left as it is. Where that cannot
        be written, nothing is kept.

    Returns:
      The folder; None for none.

    Raises:
      UserError: a folder that cannot be written.
    """
    if where == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    told = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if not where and told:
        return pathlib.Path(told)
    folder = (local_path(where) if where else usual_folder()) / processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        if not where:
            return None
        raise UserError(
            f"--compile_cache={where}: cannot write there: {error.strerror}; name another folder, "
            f"or off"
        ) from error
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder


def usual_folder() -> pathlib.Path:
    """gam_jax in XDG_CACHE_HOME, or in ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(root).expanduser() / "gam_jax" / "programs"


def processor(cpuinfo: str | None = None) -> str:
    """A name that two processors share if programs of one run on the other.

    Args:
      cpuinfo: what /proc/cpuinfo holds; None to read it.
    """
    if cpuinfo is None:
        try:
            cpuinfo = pathlib.Path("/proc/cpuinfo").read_text(errors="replace")
        except OSError:  # no Linux
            cpuinfo = ""
    told = sorted(set(_TOLD.findall(cpuinfo))) or platform.processor()
    digest = hashlib.sha256(f"{told}".encode()).hexdigest()[:12]
    return f"{platform.machine() or 'machine'}-{digest}"
