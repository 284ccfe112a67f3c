"""The processes of one job: how they find each other, and what they say to each other.

Every process runs the same command. What tells them apart comes from the environment: the
variables below (set by `experiments.launch`, or by a Kubernetes manifest), from SLURM, or from
wherever JAX looks when GAM_JAX_JOIN=1 tells it to.
"""

from __future__ import annotations

import os
import re
import socket
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from sharding import meeting
from sharding.errors import UserError

ADDRESS = "JAX_COORDINATOR_ADDRESS"
COUNT = "JAX_NUM_PROCESSES"
RANK = "JAX_PROCESS_ID"
JOIN = "GAM_JAX_JOIN"
"""Set to 1 where JAX finds the other processes by itself, as on Cloud TPU slices."""
EMULATE = "GAM_JAX_EMULATE"
"""Emulated CPU devices of this process, for `experiments.launch --devices-per-process`."""

SECONDS = "GAM_JAX_JOIN_SECONDS"
"""How long processes wait for each other at the start; START_SECONDS if it is not set."""

START_SECONDS = 120
MOST_PROCESSES = 999_999_999
HEARTBEAT_SECONDS = 20
"""A process that has died is missed after that long even where nobody watches it."""

THREADS = "NPROC"
"""How many threads XLA starts on a processor, where this is set before the first array is made."""
THREADS_OF_A_DEVICE = 4
"""Threads of an emulated device: it waits for the others in several sums at a time, each of which
holds one, and where all threads wait for devices that have none the program never ends."""

MESSAGE_BYTES, HOST_BYTES = 1024, 64
"""Room for what processes tell each other: a line, and the name of a host."""


def emulate(devices: int) -> None:
    """Makes this process see that many emulated CPU devices and no others.

    Raises:
      UserError: JAX has already looked for its devices, and found others.
    """
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)
        os.environ.setdefault(THREADS, str(THREADS_OF_A_DEVICE * devices))
    except RuntimeError:  # the backend has started
        if len(jax.devices()) != devices or jax.default_backend() != "cpu":
            raise UserError(
                f"cannot emulate {devices} devices: this process already uses "
                f"{len(jax.devices())}; start another"
            ) from None


def emulate_from_environment() -> None:
    """As `emulate`, if the launcher asks for it."""
    if os.environ.get(EMULATE):
        emulate(_number(EMULATE, 1))


def join() -> None:
    """Joins the other processes of this job, if the environment names any; asks no network else.

    Raises:
      UserError: variables that are missing or make no sense, a port that is taken, processes
        that do not come, see `sharding.meeting`.
    """
    if jax.distributed.is_initialized():
        return
    arguments: dict[str, object] = {}
    if ADDRESS in os.environ or COUNT in os.environ:
        count, rank = _number(COUNT, 1), _number(RANK, 0)
        if ADDRESS not in os.environ:
            raise UserError(f"{COUNT} is set but {ADDRESS} is not: give host:port of process 0")
        if rank >= count:
            raise UserError(f"{RANK}={rank} of {COUNT}={count}: processes are numbered from 0")
        address = meeting.address_of(os.environ[ADDRESS], ADDRESS)
        if count == 1:
            return
        arguments = {
            "coordinator_address": os.environ[ADDRESS],
            "num_processes": count,
            "process_id": rank,
        }
        meeting.meet(address, rank, count, _number(SECONDS, 1, START_SECONDS))
        if rank:
            _await(address)
    elif not (os.environ.get(JOIN) == "1" or _several_slurm_tasks()):
        return  # alone; else jax asks the cluster
    try:
        jax.distributed.initialize(
            **arguments,  # type: ignore[arg-type]
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot join the job at {arguments.get('coordinator_address', 'its first process')} "
            f"({reason[:160]}): check that all processes run and reach that address"
        ) from error


def _await(address: meeting.Address) -> None:
    """Until JAX's own service listens where process 0 waited; without it JAX ends the process."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(address, timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"process 0 has ended as the job began (nobody answers at {address.host}:"
                    f"{address.port}): see what it says"
                ) from error
            time.sleep(0.1)


def _several_slurm_tasks() -> bool:
    return "SLURM_STEP_NODELIST" in os.environ and _number("SLURM_NTASKS", 1) > 1


def _number(name: str, least: int, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise UserError(
            f"{name}='{text}': set it to a whole number from {least} to {MOST_PROCESSES:,}"
        )
    return int(text)


def rank() -> int:
    """Which process this is, from 0."""
    return jax.process_index()


def count() -> int:
    """How many processes the job has."""
    return jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here. Nothing for one."""
    if count() > 1:
        multihost_utils.sync_global_devices(name)


def hosts() -> list[str]:
    """The name of each process's host. Every process must call it."""
    own = socket.gethostname().encode()[:HOST_BYTES].ljust(HOST_BYTES, b"\0")
    rows = gather(np.frombuffer(own, np.uint8))
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]


def lost_another(error: BaseException) -> str | None:
    """One line if an error means that another process of the job is gone; else None."""
    if not isinstance(error, jax.errors.JaxRuntimeError) or not jax.distributed.is_initialized():
        return None
    said = str(error)
    if not any(sign in said for sign in ("Gloo", "NCCL", "UNAVAILABLE", "Connection closed")):
        return None
    return f"another process of this job is gone ({' '.join(said.split())[:120]})"


def agree(flag: bool) -> bool:
    """Whether `flag` is True on any process, the same answer on all. Every process must call it."""
    if count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def gather(array: np.ndarray) -> np.ndarray:
    """[processes, ...]: the arrays of all processes, of one shape. Every process must call it."""
    if count() == 1:
        return array[None]
    return np.asarray(multihost_utils.process_allgather(array)).reshape(count(), *array.shape)


def first_said(text: str) -> str:
    """The text of the first process whose text is not empty. Every process must call it."""
    if count() == 1:
        return text
    told = np.zeros(MESSAGE_BYTES, np.uint8)
    letters = np.frombuffer(text.encode()[:MESSAGE_BYTES], np.uint8)
    told[: len(letters)] = letters
    rows = (bytes(row).rstrip(b"\0").decode(errors="replace") for row in gather(told))
    return next((row for row in rows if row), "")
