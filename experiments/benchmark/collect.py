"""All benchmarks of a machine in one file."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax

from experiments.benchmark.timing import Quantity, Rows
from experiments.command import as_process
from sharding.errors import UserError
from sharding.json_file import read_json
from sharding.whole_file import write_named


def machine() -> dict[str, Any]:
    """What decides the figures: cores, processor, memory, versions, and how busy it is now."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "backend": jax.default_backend(),
        "system": platform.system(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "load": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    """Its model, where the system tells."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or platform.machine()


def collect(
    names: Sequence[str], options: Sequence[str], path: pathlib.Path, resume: bool = False
) -> list[str]:
    """Runs benchmarks, each in a process of its own, so that none sees another's devices.

    The file is written after each, and holds date, machine (its load before), load after,
    options; benchmarks: name -> rows.

    Args:
      names: of benchmarks.
      options: flags that each is given.
      path: of the file.
      resume: whether to keep what the file has already, and measure what it lacks.

    Returns:
      The names of those that did not end well.

    Raises:
      UserError: to resume a file of another machine or of other options.
    """
    here, failed = machine(), []
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": here,
        "options": list(options),
        "load_after": here["load"],
        "benchmarks": {},
    }
    if resume and path.exists():
        before = read(path)
        for what, old, new in (
            ("options", list(before.options), list(options)),
            *((name, before.machine.get(name), here[name]) for name in here if name != "load"),
        ):
            if old != new:
                raise UserError(
                    f"{path} was measured with {what} {old}, not {new}: leave --resume out"
                )
        found["benchmarks"] = {name: written(rows) for name, rows in before.benchmarks.items()}
    for name in names:
        if name in found["benchmarks"]:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = as_process(("gam", "benchmark", name, "--json", *options))
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            failed.append(name)
            continue
        found["benchmarks"][name] = json.loads(done.stdout)["rows"]
        found["load_after"] = round(os.getloadavg()[0], 2)
        write_named(path, json.dumps(found, indent=1) + "\n")
    return failed


def written(rows: Rows) -> dict[str, Any]:
    """Rows as JSON values."""
    return {
        name: {column: dataclasses.asdict(figure) for column, figure in row.items()}
        for name, row in rows.items()
    }


@dataclasses.dataclass(frozen=True)
class Measured:
    """A file of `collect`.

    Attributes:
      path: where it was.
      date: when.
      machine: where.
      load: of the machine before and after.
      options: that the benchmarks were given.
      benchmarks: name -> rows.
    """

    path: pathlib.Path
    date: str
    machine: dict[str, Any]
    load: tuple[float, float]
    options: tuple[str, ...]
    benchmarks: dict[str, Rows]


def read(path: pathlib.Path) -> Measured:
    """Opens what `all` wrote.

    Raises:
      UserError: no such file, or another kind of file.
    """
    try:
        found = read_json(path, finite=False)
        benchmarks = {
            name: {
                row: {column: Quantity(**figure) for column, figure in figures.items()}
                for row, figures in rows.items()
            }
            for name, rows in found["benchmarks"].items()
        }
        machine, load = dict(found["machine"]), (found["machine"]["load"], found["load_after"])
        options = tuple(found["options"])
        return Measured(path, found["date"], machine, load, options, benchmarks)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a file that `all` wrote") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} was not written by `benchmark all`: {error}") from error
