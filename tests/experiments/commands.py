"""Runs the commands as a person would, and says what they printed."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from absl import flags

from experiments import cli

WORDS = {
    "launch": {"takes_command": True},
    "parscale": {"choices": ("law", "stages", "cost")},
    "data": {"choices": ("show",)},
    "draft": {"choices": ("units", "semi")},
    "plan": {"choices": ("train", "serve", "check", "measured"), "otherwise": "train"},
    "search.__main__": {"choices": ("run", "extract"), "otherwise": "run"},
    "report.__main__": {"takes": "run folders"},
    "study.__main__": {"choices": ("list", "run", "claims"), "files": {"run": 1}},
    "benchmark.__main__": {
        "choices": ("step", "scan", "loss", "peers", "serve", "all", "compare", "page"),
        "files": {"all": 1, "compare": 2, "page": 2},
    },
    "papers.gam.__main__": {"choices": ("table1", "table2", "table3", "perplexity", "stories")},
}
"""How commands that take words are run."""
LATE = ("grain", "array_record.python.array_record_data_source")
"""They define flags of their own when they are first imported; those stay."""
ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


def tool(name: str) -> str:
    """The path of a console tool: beside this interpreter, else where the shell finds it.

    Raises:
      FileNotFoundError: neither has it.
    """
    beside = str(pathlib.Path(sys.executable).parent)
    found = shutil.which(name, path=beside) or shutil.which(name)
    if found is None:
        raise FileNotFoundError(
            f"{name} is neither in {beside} nor on PATH: pip install -e '.[test]'"
        )
    return found


def start(name: str, *args: str) -> subprocess.Popen[str]:
    """Starts `python -m experiments.<name>`, which finds what the tests have compiled."""
    cheap = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    environment = {
        **os.environ,
        "XLA_FLAGS": " ".join(cheap),  # the devices of a person's machine, not those of the tests
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
    for late in LATE:
        importlib.import_module(late)
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
