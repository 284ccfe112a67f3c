"""Meshes with named axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from sharding.errors import UserError

AXIS_NAMES = ("data", "seq", "tensor")


def make_mesh(
    data: int = 1, seq: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over (data, seq, tensor) from the first devices of this machine.

    The default is the mesh of a laptop: one device, three axes of size one.

    Raises:
      UserError: an axis below one, or more devices asked for than there are.
    """
    sizes = (data, seq, tensor)
    for name, size in zip(AXIS_NAMES, sizes, strict=True):
        if size < 1:
            raise UserError(f"mesh axis {name}={size}: give a size of at least 1")
    devices = list(jax.devices() if devices is None else devices)
    needed = data * seq * tensor
    if needed > len(devices):
        raise UserError(
            f"mesh data={data},seq={seq},tensor={tensor} needs {needed} devices but there are "
            f"{len(devices)}: ask for a smaller mesh"
        )
    types = (AxisType.Auto,) * len(AXIS_NAMES)
    return jax.make_mesh(sizes, AXIS_NAMES, axis_types=types, devices=devices[:needed])
