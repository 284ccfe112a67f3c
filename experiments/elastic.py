"""Starts a run again on the devices that are left, when processes of a job die or hang.

  launch: process 1 (here, pid 71) was ended by SIGKILL, training at step 23; ending the others
  launch: restart 1 of 3: 1 process of 4 devices, mesh data=2,seq=1,tensor=2, from the newest ...

Survivors are ended at once: they wait in a collective for the dead, and a save needs them all.
The lost processes' devices are not used again. The command itself plans the new mesh (--plan, by
the rule of `sharding.replan`) and goes on from its newest checkpoint (--resume), so it must be
`gam train` or know these flags.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from experiments import cli
from sharding import processes
from sharding.errors import UserError
from sharding.replan import Plan, check_one_level

SLOT = "GAM_JAX_SLOT"
"""Set for each process: its place among the processes of the first start. A wrapper can choose
devices by it, as CUDA_VISIBLE_DEVICES=$GAM_JAX_SLOT; after a death that place stays empty."""

TRAINS = ("gam train", "experiments/command.py train", "experiments.train", "experiments/train")
"""How a command line may name the training command."""


def define_flags() -> None:
    """The command line."""
    flags.DEFINE_bool("elastic", False, "Restart the run on what is left when a process is lost.")
    flags.DEFINE_integer("min_devices", 1, "With --elastic: give up below that many devices.", 1)
    flags.DEFINE_integer("max_restarts", 3, "With --elastic: give up after that many restarts.", 0)


def run(
    start: Callable[[Sequence[str], Sequence[int], int], Any],
    command: Sequence[str],
    slots: Sequence[int],
    devices: int,
) -> int:
    """Starts a job, and again on what is left while that makes sense; its exit code.

    Args:
      start: runs (command, slots, emulated devices of each) to its end, see `launch.Ending`.
      command: of the user.
      slots: of the first start.
      devices: emulated devices of a process; 0 for the real ones.

    Raises:
      UserError: a command that cannot be resumed, or a mesh that cannot be planned anew.
    """
    if not any(train in " ".join(command) for train in TRAINS):
        raise UserError("--elastic restarts a run from its checkpoint: give it gam train")
    check_one_level(_mesh_of(command))
    ending = start(command, slots, devices)
    each, left = devices or ending.devices, list(slots)
    for attempt in range(1, flags.FLAGS.max_restarts + 2):
        if ending.code in (0, cli.BAD_INPUT) or ending.asked:
            break
        left = [slot for slot in left if slot not in {slots[rank] for rank in ending.lost}]
        if attempt > flags.FLAGS.max_restarts:
            _say(f"giving up after {attempt - 1} restarts (--max-restarts)")
            break
        each = each or ending.devices
        plan = _plan(command, len(left), each)
        if plan is None:
            break
        # Those that the mesh has no use for are kept, in case more are lost.
        slots, used = left[: plan.processes], plan.processes * plan.devices
        if used < flags.FLAGS.min_devices:
            _say(
                f"giving up: {len(left) * each} devices are left, of which this run can use "
                f"{used}, below --min-devices={flags.FLAGS.min_devices}"
            )
            break
        what = _counted(plan.processes, plan.devices)
        _say(
            f"restart {attempt} of {flags.FLAGS.max_restarts}: {what}, mesh {plan.mesh}, from the "
            f"newest checkpoint"
        )
        resumed = (*once(command), "--resume", f"--mesh={plan.mesh}", "--across=")
        ending = start(resumed, slots, plan.devices if devices else 0)
    return ending.code


def _mesh_of(command: Sequence[str]) -> str:
    """The mesh that a command line asks for; the last one counts, "" for none."""
    found = ""
    for word, following in itertools.zip_longest(command, command[1:], fillvalue=""):
        name, given, value = word.partition("=")
        if name in ("--mesh", "-mesh"):
            found = value if given else following
    return found


def once(command: Sequence[str]) -> list[str]:
    """A command without --skip, which is for its first start: the run remembers it.

    A --resume=STEP needs no such care, since the last --resume holds.
    """
    left, value = [], False
    for word in command:
        named = word.startswith("-") and word.lstrip("-").partition("=")[0] == "skip"
        if not value and not named:
            left.append(word)
        value = not value and word in ("--skip", "-skip")
    return left


def _plan(command: Sequence[str], count: int, devices: int) -> Plan | None:
    """What the command says of `count` processes that are left; None, and a line, if it cannot."""
    if not count or not devices:
        missing = "no process is left" if not count else "no process said how many devices it has"
        _say(f"giving up: {missing}")
        return None
    joined = {processes.ADDRESS, processes.COUNT, processes.RANK, processes.EMULATE}
    asked = subprocess.run(
        [*command, "--resume", f"--plan={count}x{devices}"],
        # On emulated devices: the real ones may still be in the hands of who has just died.
        env={k: v for k, v in os.environ.items() if k not in joined} | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    try:
        return Plan(**json.loads(asked.stdout.splitlines()[-1]))
    except (ValueError, TypeError, IndexError):
        said = (asked.stderr.strip().splitlines() or ["it printed no plan"])[-1]
        _say(f"giving up, no plan for {_counted(count, devices)}: {said}")
        return None


def _counted(count: int, devices: int) -> str:
    process, device = "process" if count == 1 else "processes", "device" + "s" * (devices > 1)
    return f"{count} {process} of {devices} {device}"


def _say(line: str) -> None:
    print(f"launch: {line}", file=sys.stderr, flush=True)
