"""Machines that programs are compiled for: TPUs by name, GPUs by their profiles."""

from __future__ import annotations

import functools

from gam_jax.planning.profiles import Profile, profile
from sharding import topology as machines
from sharding.errors import UserError
from sharding.topology import TPUS, Gpu, Topology

GPUS = {"h100": "h100", "a100": "a100_80"}
"""Name of a GPU that is compiled for -> its profile."""
NAMES = (*TPUS, *GPUS)
"""Whatever programs can be compiled for."""


def target(device: Profile) -> Gpu:
    """What a GPU's compiler has to know, from the figures of its profile.

    Raises:
      UserError: a figure that nobody has said, or no name of the device.
    """
    if not device.kinds:
        raise UserError(f"profile {device.name} has no kinds: say what JAX calls the device")

    def whole(name: str) -> int:
        return round(device.value(f"gpu.{name}"))

    return Gpu(
        kind=device.kinds[0],
        memory=round(device.memory.capacity),
        capability=whole("capability"),
        cores=whole("cores"),
        units=whole("units"),
        shared=whole("shared"),
        block=whole("block"),
        cache=whole("cache"),
        clock=device.value("gpu.clock") / 1e9,
        bandwidth=round(device.memory.bandwidth),
    )


@functools.cache
def gpus() -> dict[str, Gpu]:
    """All GPUs that are compiled for, by name."""
    return {name: target(profile(of)) for name, of in GPUS.items()}


def topology(text: str, what: str = "--topology") -> Topology:
    """The devices that a command line asks to compile for, see `sharding.topology.topology`.

    Args:
      text: as there; NAME is one of `NAMES`.
      what: names it in a message.

    Raises:
      UserError: as there.
    """
    return machines.topology(text, what, gpus())
