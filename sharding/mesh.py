"""Meshes with named axes, from sizes or from the words of a command line."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from sharding.errors import UserError

AXIS_NAMES = ("worker", "pipe", "data", "stream", "seq", "expert", "tensor")
"""The outer axes first: those may cross hosts. `worker` and `pipe` talk least, and are crossed
first; `tensor`, which talks most, stays inside one."""

ALWAYS_SHOWN = ("data", "seq", "tensor")
"""Axes that any model can use; words for a mesh leave the others out where they are one device."""


def make_mesh(
    data: int = 1,
    seq: int = 1,
    tensor: int = 1,
    *,
    stream: int = 1,
    expert: int = 1,
    pipe: int = 1,
    worker: int = 1,
    devices: Sequence[Any] | None = None,
    hosts: Sequence[int] | None = None,
    across: Mapping[str, int] | None = None,
) -> Mesh:
    """A mesh over all of `AXIS_NAMES` from the first devices there are.

    The default is the mesh of a laptop: one device, every axis of size one.

    Args:
      data: devices that the rows of a batch are split over.
      seq: devices that the tokens of a sequence are split over.
      tensor: devices that the heads, channels or slots of a layer are split over.
      stream: devices that parallel streams are split over.
      expert: devices that the experts of a mixture are split over.
      pipe: devices that layers are split over, in stages.
      worker: devices that workers which meet now and then are split over.
      devices: to choose from; all if None.
      hosts: a number for the fast network that each of them is on; by `host_of` if None.
      across: how many hosts each axis crosses, where the devices are on several; what is left of
        an axis lies inside a host. The outermost axes cross first if None.

    Raises:
      UserError: an axis below one, more devices asked for than there are, or hosts that do not
        fit the axes.
    """
    sizes = (worker, pipe, data, stream, seq, expert, tensor)
    for name, size in zip(AXIS_NAMES, sizes, strict=True):
        if size < 1:
            raise UserError(f"mesh axis {name}={size}: give a size of at least 1")
    devices = list(jax.devices() if devices is None else devices)
    needed = math.prod(sizes)
    if needed > len(devices):
        raise UserError(
            f"mesh {in_words(dict(zip(AXIS_NAMES, sizes, strict=True)))} needs {needed} devices "
            f"but there are {len(devices)}: ask for a smaller mesh"
        )
    devices = devices[:needed]
    on = [host_of(device) for device in devices] if hosts is None else list(hosts)[:needed]
    if len(set(on)) == 1 and not across:
        placed = _on_one_network(sizes, devices)
    else:
        placed = np.asarray(devices, dtype=object)[arrange(on, sizes, across)]
    return Mesh(placed, AXIS_NAMES, axis_types=(AxisType.Auto,) * len(AXIS_NAMES))


def _on_one_network(sizes: tuple[int, ...], devices: list[Any]) -> np.ndarray:
    """Devices where the mesh's axes lie well in the network: on TPUs a torus.

    An axis of the torus may have to be shared by two of the mesh.
    """
    try:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"mesh {in_words(dict(zip(AXIS_NAMES, sizes, strict=True)))} is no whole part of the "
            f"torus that its {len(devices)} devices are of: use all devices, or other sizes"
        ) from error


def in_words(sizes: Mapping[str, int]) -> str:
    """Sizes of a mesh as a command line takes them, as "data=2,seq=1,tensor=4"."""
    shown = (n for n in AXIS_NAMES if n in ALWAYS_SHOWN or sizes.get(n, 1) > 1)
    return ",".join(f"{name}={sizes.get(name, 1)}" for name in shown)


def host_of(device: Any) -> int:
    """A number for the fast network that a device is on.

    It is the device's slice where TPU slices are joined, and its process elsewhere.
    """
    found = getattr(device, "slice_index", None)
    return device.process_index if found is None else found


def arrange(
    hosts: Sequence[int], sizes: Sequence[int], across: Mapping[str, int] | None = None
) -> np.ndarray:
    """Which device stands where: indices into `hosts`, in the shape `sizes`.

    Axis a of size s that crosses c hosts is c groups of s / c devices, each group inside a host.

    Args:
      hosts: the host of each device.
      sizes: of the mesh's axes.
      across: hosts that each axis crosses; if None, the outermost axes cross first.

    Raises:
      UserError: hosts of unequal numbers of devices, or that do not fit the axes.
    """
    names = sorted(set(hosts))
    groups = [[i for i, host in enumerate(hosts) if host == name] for name in names]
    inside = len(groups[0])
    if any(len(group) != inside for group in groups):
        raise UserError(
            f"hosts have {', '.join(str(len(group)) for group in groups)} devices of the mesh: "
            f"make it a multiple that all hosts have alike"
        )
    crossed = _crossed(len(names), sizes, across)
    kept = [size // cross for size, cross in zip(sizes, crossed, strict=True)]
    # [host of axis 0, host of axis 1, ..., inside of axis 0, ...] -> each axis' two parts together
    order = np.asarray(groups).reshape(*crossed, *kept)
    count = len(sizes)
    pairs = [place for axis in range(count) for place in (axis, count + axis)]
    return order.transpose(pairs).reshape(tuple(sizes))


def _crossed(hosts: int, sizes: Sequence[int], across: Mapping[str, int] | None) -> list[int]:
    """Hosts that each axis crosses."""
    if across is None:
        left, crossed = hosts, []
        for size in sizes:
            crossed.append(math.gcd(size, left))
            left //= crossed[-1]
        if left > 1:
            shown = in_words(dict(zip(AXIS_NAMES, sizes, strict=True)))
            raise UserError(f"mesh {shown} does not divide over {hosts} hosts: change its axes")
        return crossed
    crossed = [across.get(name, 1) for name in AXIS_NAMES]
    for name, size, cross in zip(AXIS_NAMES, sizes, crossed, strict=True):
        if size % cross:
            raise UserError(f"mesh axis {name}={size} cannot cross {cross} hosts: change --across")
    if math.prod(crossed) != hosts:
        raise UserError(
            f"--across makes {math.prod(crossed)} hosts but the mesh has {hosts}: the axes' "
            f"numbers must multiply to that"
        )
    return crossed


def parse_axes(text: str, what: str = "--mesh") -> dict[str, int]:
    """ "data=2,tensor=4" as a dict.

    Raises:
      UserError: an axis that is unknown or given twice, or a size that is no number.
    """
    sizes: dict[str, int] = {}
    for entry in filter(None, text.split(",")):
        name, _, size = entry.partition("=")
        if name not in AXIS_NAMES:
            near = difflib.get_close_matches(name, AXIS_NAMES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(AXIS_NAMES)}"
            raise UserError(f"{what}={text}: unknown axis '{name}'; {hint}")
        if name in sizes:
            raise UserError(f"{what}={text}: axis '{name}' is given twice: give it once")
        try:
            sizes[name] = int(size)
        except ValueError:
            raise UserError(f"{what}={text}: '{entry}' should look like {name}=2") from None
    return sizes


def mesh_from_text(
    text: str,
    across: str = "",
    devices: Sequence[Any] | None = None,
    hosts: Sequence[int] | None = None,
) -> Mesh:
    """The mesh that a command line asks for.

    Args:
      text: as "data=2,seq=2,tensor=2"; one size may be -1, what is left of the devices. Empty:
        all devices on `data`.
      across: as "data=2", see `make_mesh`; empty for its default.
      devices: to choose from; all if None.
      hosts: see `make_mesh`.

    Raises:
      UserError: see `parse_axes` and `make_mesh`; several processes whose devices are not all in
        the mesh.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = parse_axes(text) or {"data": -1}
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise UserError(f"--mesh={text}: only one axis can be -1, what is left: give the others")
    if rest:
        given = math.prod(size for size in sizes.values() if size != -1)
        if given < 1 or len(devices) % given:
            raise UserError(
                f"--mesh={text}: {len(devices)} devices do not divide by {given}, the other axes: "
                f"change them"
            )
        sizes[rest[0]] = len(devices) // given
    crossed = parse_axes(across, "--across") if across else None
    mesh = make_mesh(**sizes, devices=devices, hosts=hosts, across=crossed)
    if jax.process_count() > 1 and mesh.size != len(devices):
        raise UserError(
            f"--mesh={text} uses {mesh.size} of {len(devices)} devices: with several processes "
            f"use all of them, as with data=-1"
        )
    return mesh
