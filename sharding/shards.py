"""Arrays on devices, made of parts in the memory of the host."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

Range = tuple[tuple[int, int], ...]
"""Beginning and end along each dimension."""


def range_of(index: Sequence[slice], shape: Sequence[int]) -> Range:
    """Where a shard begins and ends."""
    pairs = zip(index, shape, strict=True)
    return tuple((start, end) for start, end, _ in (cut.indices(size) for cut, size in pairs))


def own_ranges(shape: Sequence[int], sharding: Any) -> dict[Range, list[Any]]:
    """The parts of an array that this process's devices hold, and which devices hold each.

    Without a sharding it is one part, of no device in particular.
    """
    if sharding is None:
        return {tuple((0, size) for size in shape): [None]}
    found: dict[Range, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(tuple(shape)).items():
        found.setdefault(range_of(index, shape), []).append(device)
    return found


def from_host(
    shape: Sequence[int], sharding: Any, read: Callable[[Range], np.ndarray]
) -> jax.Array:
    """An array on devices; no part of it is left on the host when this returns.

    Args:
      shape: of the whole.
      sharding: how it lies on devices; None for the usual device.
      read: makes a part, once for all devices that hold it.
    """
    shards = []
    for place, devices in own_ranges(shape, sharding).items():
        part = read(place)
        # Memory shared with NumPy could not be donated.
        own = [jax.device_put(part, _on(device, sharding), may_alias=False) for device in devices]
        shards += jax.block_until_ready(own)
        del part
        gc.collect(0)  # until then JAX holds on to what it has copied
    if sharding is None:
        return shards[0]
    return jax.make_array_from_single_device_arrays(tuple(shape), sharding, shards)


def _on(device: Any, sharding: Any) -> Any:
    """Where a part goes: to the device, or to the memory beside it that the sharding names."""
    kind = getattr(sharding, "memory_kind", None)
    return device if kind is None else SingleDeviceSharding(device, memory_kind=kind)
