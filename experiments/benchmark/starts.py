"""What the start of `gam serve` costs: the first one, and the next, which finds its programs."""

from __future__ import annotations

import pathlib
import re
import signal
import subprocess
import tempfile

from experiments.benchmark.timing import Quantity, Rows
from experiments.command import as_process
from sharding.errors import UserError, one_line

MOST = 3
"""Turns: each takes half a minute."""
READY = re.compile(r"ready after ([0-9.]+) s of the processor")
TEXT = "def add(one, other):\n    return one + other\n\n\n"


def run(repeats: int, width: int, depth: int) -> Rows:
    """Processor time of the command until it serves.

    Of a run that was trained for one step; each turn begins with an empty folder of programs.

    Args:
      repeats: turns, at most `MOST`.
      width: of the model.
      depth: of the model, in blocks.

    Raises:
      UserError: a command that fails; its last line says why.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        train(folder / "run", width, depth)
        first, second = [], []
        for turn in range(min(repeats, MOST)):
            cache = folder / f"programs {turn}"
            first.append(_start(folder, cache))
            second.append(_start(folder, cache))
    ratios = [y / x for x, y in zip(first, second, strict=True)]
    return {
        f"start, GAM of {depth} blocks of width {width}, processor time": {
            "first": Quantity.of(first, "s"),
            "second": Quantity.of(second, "s"),
            "second over first": Quantity.of(ratios, ""),
        }
    }


def train(run: pathlib.Path, width: int, depth: int, seed: int = 0, cache: str = "off") -> None:
    """Trains a GAM on bytes for one step, so that it can be served.

    Args:
      run: its folder; the corpus and its data stand beside it.
      width: of the model.
      depth: in blocks.
      seed: of its parameters.
      cache: folder of compiled programs.

    Raises:
      UserError: the command failed; its last line says why.
    """
    text = run.with_name("corpus.txt")
    text.write_text(TEXT * 500)
    settings = {
        "data.name": f"text:{text}",
        "data.dir": run.with_name("data"),
        "model.width": width,
        "model.depth": depth,
        "model.block.mixer.slots": width,
        "train.steps": 1,
        "train.seed": seed,
        "train.validate_first": 0,
    }
    command = ["gam", "train", f"--run={run}", f"--compile_cache={cache}"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    done = subprocess.run(as_process(command), capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:]
        raise UserError(f"the run to be served was not trained: {one_line(' '.join(why))}")


def _start(folder: pathlib.Path, cache: pathlib.Path) -> float:
    """Seconds of the processor until it serves, as it says itself; it is told to end then."""
    command = ["gam", "serve", f"--run={folder / 'run'}", "--port=0", f"--compile_cache={cache}"]
    told, spent = "", 0.0
    with subprocess.Popen(
        as_process(command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for told in process.stderr:
            if found := READY.search(told):
                spent = float(found[1])
                process.send_signal(signal.SIGTERM)
    if process.returncode or not spent:
        raise UserError(f"gam serve failed: {one_line(told)}")
    return spent
