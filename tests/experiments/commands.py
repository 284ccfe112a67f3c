"""Runs the commands as a person would, and says what they printed."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from experiments import cli

WORDS = {
    "launch": {"takes_command": True},
    "parscale.__main__": {"choices": ("law", "stages", "cost")},
    "report.__main__": {"takes": "run folders"},
    "benchmark.__main__": {
        "choices": ("step", "scan", "all", "compare", "page"),
        "files": {"all": 1, "compare": 2, "page": 2},
    },
    "papers.gam.__main__": {"choices": ("table1", "table2", "table3", "perplexity")},
}
"""How commands that take words are run."""
ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


def start(cache: pathlib.Path, name: str, *args: str) -> subprocess.Popen[str]:
    """Starts `python -m experiments.<name>`; what it compiles is kept in `cache` for the next."""
    cheap = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    environment = {
        **os.environ,
        "XLA_FLAGS": " ".join(cheap),  # the devices of a person's machine, not those of the tests
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{name}", *args],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Result:
    """Waits for a process of `start`."""
    out, err = process.communicate(timeout=300)
    return Result(process.returncode, out, err)


def in_process(
    patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], name: str, *args: str
) -> Result:
    """The same command inside this process, with flags of its own: quick where it fails early."""
    module = importlib.import_module(f"experiments.{name}")
    patch.setattr(sys, "argv", [name, *args])  # ml_collections looks for its overrides there
    before = set(flags.FLAGS)
    capture.readouterr()
    try:
        with pytest.raises(SystemExit) as ended:
            cli.run(module.main, module.define_flags, **WORDS.get(name, {}))
    finally:
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        flags.FLAGS.unparse_flags()
    printed = capture.readouterr()
    return Result(int(ended.value.code or 0), printed.out, printed.err)
