"""Meshes with named axes, from sizes or from the words of a command line."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
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


def level_names(count: int) -> tuple[str, ...]:
    """The mesh axes of `data` in so many levels, the outermost first: data_0, data_1, ..."""
    return ("data",) if count == 1 else tuple(f"data_{level}" for level in range(count))


def in_levels(sizes: Mapping[str, int], levels: Sequence[int]) -> dict[str, int]:
    """Sizes of axes, `data` as that many levels, the outermost first; as they are without any."""
    own = dict(zip(level_names(len(levels)), levels, strict=True)) if levels else {}
    found: dict[str, int] = {}
    for name, size in sizes.items():
        found |= own if own and name == "data" else {name: size}
    return found


def axis_of(name: str) -> str:
    """The axis of `AXIS_NAMES` that a mesh axis is, or is a level of."""
    return "data" if name.startswith("data_") else name


def make_mesh(
    data: int | Sequence[int] = 1,
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
      data: devices that the rows of a batch are split over; several numbers are levels, the
        outermost first, each a mesh axis (`level_names`).
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
    levels = (data,) if isinstance(data, int) else tuple(data)
    names = tuple(
        itertools.chain.from_iterable(
            level_names(len(levels)) if name == "data" else (name,) for name in AXIS_NAMES
        )
    )
    sizes = (worker, pipe, *levels, stream, seq, expert, tensor)
    shown = in_words(dict(zip(names, sizes, strict=True)))
    for name, size in zip(names, sizes, strict=True):
        if size < 1:
            raise UserError(f"mesh axis {name}={size}: give a size of at least 1")
    devices = list(jax.devices() if devices is None else devices)
    needed = math.prod(sizes)
    if needed > len(devices):
        raise UserError(
            f"mesh {shown} needs {needed} devices but there are {len(devices)}: ask for a "
            f"smaller mesh"
        )
    devices = devices[:needed]
    on = [host_of(device) for device in devices] if hosts is None else list(hosts)[:needed]
    if len(set(on)) == 1 and not across:
        placed = _on_one_network(sizes, devices, shown)
    else:
        placed = np.asarray(devices, dtype=object)[arrange(on, sizes, across, names)]
    return Mesh(placed, names, axis_types=(AxisType.Auto,) * len(names))


def _on_one_network(sizes: tuple[int, ...], devices: list[Any], shown: str) -> np.ndarray:
    """Devices where the mesh's axes lie well in the network: on TPUs a torus.

    An axis of the torus may have to be shared by two of the mesh.
    """
    try:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"mesh {shown} is no whole part of the torus that its {len(devices)} devices are of: "
            f"use all devices, or other sizes"
        ) from error


def in_words(sizes: Mapping[str, int]) -> str:
    """Sizes of a mesh as a command line takes them, as "data=2,seq=1,tensor=4"."""
    levels = [str(size) for name, size in sizes.items() if name != "data" == axis_of(name)]
    words = {"data": "x".join(levels)} if levels else {}
    shown = (n for n in AXIS_NAMES if n in ALWAYS_SHOWN or sizes.get(n, 1) > 1)
    return ",".join(f"{name}={words.get(name, sizes.get(name, 1))}" for name in shown)


def host_of(device: Any) -> int:
    """A number for the fast network that a device is on.

    It is the device's slice where TPU slices are joined, and its process elsewhere.
    """
    found = getattr(device, "slice_index", None)
    return device.process_index if found is None else found


def arrange(
    hosts: Sequence[int],
    sizes: Sequence[int],
    across: Mapping[str, int] | None = None,
    names: Sequence[str] = AXIS_NAMES,
) -> np.ndarray:
    """Which device stands where: indices into `hosts`, in the shape `sizes`.

    Axis a of size s that crosses c hosts is c groups of s / c devices, each group inside a host.

    Args:
      hosts: the host of each device.
      sizes: of the mesh's axes.
      across: hosts that each axis crosses; if None, the outermost axes cross first. Of an axis in
        levels the outermost levels do.
      names: of the mesh's axes.

    Raises:
      UserError: hosts of unequal numbers of devices, or that do not fit the axes.
    """
    groups = [[i for i, host in enumerate(hosts) if host == name] for name in sorted(set(hosts))]
    inside = len(groups[0])
    if any(len(group) != inside for group in groups):
        raise UserError(
            f"hosts have {', '.join(str(len(group)) for group in groups)} devices of the mesh: "
            f"make it a multiple that all hosts have alike"
        )
    crossed = _crossed(len(groups), dict(zip(names, sizes, strict=True)), across)
    kept = [size // cross for size, cross in zip(sizes, crossed, strict=True)]
    # [host of axis 0, host of axis 1, ..., inside of axis 0, ...] -> each axis' two parts together
    order = np.asarray(groups).reshape(*crossed, *kept)
    count = len(sizes)
    pairs = [place for axis in range(count) for place in (axis, count + axis)]
    return order.transpose(pairs).reshape(tuple(sizes))


def _crossed(hosts: int, sizes: Mapping[str, int], across: Mapping[str, int] | None) -> list[int]:
    """Hosts that each axis of a mesh crosses."""

    def outermost(sizes: Iterable[int], hosts: int) -> tuple[list[int], int]:
        crossed = []
        for size in sizes:
            crossed.append(math.gcd(size, hosts))
            hosts //= crossed[-1]
        return crossed, hosts

    if across is None:
        crossed, left = outermost(sizes.values(), hosts)
        if left > 1:
            raise UserError(
                f"mesh {in_words(sizes)} does not divide over {hosts} hosts: change its axes"
            )
        return crossed
    crossed = []
    for name in AXIS_NAMES:
        own, cross = (
            [size for level, size in sizes.items() if axis_of(level) == name],
            across.get(name, 1),
        )
        found, left = outermost(own, cross)
        if left > 1:
            shown = "x".join(map(str, own))
            raise UserError(f"mesh axis {name}={shown} cannot cross {cross} hosts: change --across")
        crossed += found
    if math.prod(crossed) != hosts:
        raise UserError(
            f"--across makes {math.prod(crossed)} hosts but the mesh has {hosts}: the axes' "
            f"numbers must multiply to that"
        )
    return crossed


def parse_axes(text: str, what: str = "--mesh", given: str = "") -> dict[str, int]:
    """ "data=2,tensor=4" as a dict.

    Args:
      text: as above.
      what: it is, for messages.
      given: the words that a person gave, where these are others.

    Raises:
      UserError: an axis that is unknown or given twice, or a size that is no number.
    """
    sizes: dict[str, int] = {}
    shown = f"{what}={given or text}"
    for entry in filter(None, text.split(",")):
        name, _, size = entry.partition("=")
        if name not in AXIS_NAMES:
            near = difflib.get_close_matches(name, AXIS_NAMES, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(AXIS_NAMES)}"
            raise UserError(f"{shown}: unknown axis '{name}'; {hint}")
        if name in sizes:
            raise UserError(f"{shown}: axis '{name}' is given twice: give it once")
        try:
            sizes[name] = int(size)
        except ValueError:
            raise UserError(f"{shown}: '{entry}' should look like {name}=2") from None
    return sizes


def data_levels(text: str) -> tuple[str, tuple[int, ...]]:
    """ "data=2x4,tensor=2" as "data=8,tensor=2" and (2, 4); () where `data` is in one level."""
    found = re.search(r"(?:^|,)data=(\d+(?:x\d+)+)(?=,|$)", text)
    if found is None:
        return text, ()
    levels = tuple(map(int, found[1].split("x")))
    return text[: found.start(1)] + str(math.prod(levels)) + text[found.end(1) :], levels


def mesh_from_text(
    text: str,
    across: str = "",
    devices: Sequence[Any] | None = None,
    hosts: Sequence[int] | None = None,
) -> Mesh:
    """The mesh that a command line asks for.

    Args:
      text: as "data=2,seq=2,tensor=2"; one size may be -1, what is left of the devices. Empty:
        all devices on `data`. `data=2x2x2` is that axis in levels, the outermost first.
      across: as "data=2", see `make_mesh`; empty for its default.
      devices: to choose from; all if None.
      hosts: see `make_mesh`.

    Raises:
      UserError: see `parse_axes` and `make_mesh`; several processes whose devices are not all in
        the mesh.
    """
    devices = list(jax.devices() if devices is None else devices)
    plain, levels = data_levels(text)
    sizes = parse_axes(plain, given=text) or {"data": -1}
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise UserError(f"--mesh={text}: only one axis can be -1, what is left: give the others")
    if rest:
        others = math.prod(size for size in sizes.values() if size != -1)
        if others < 1 or len(devices) % others:
            raise UserError(
                f"--mesh={text}: {len(devices)} devices do not divide by {others}, the other axes: "
                f"change them"
            )
        sizes[rest[0]] = len(devices) // others
    crossed = parse_axes(across, "--across") if across else None
    given: dict[str, Any] = {**sizes, "data": levels} if levels else dict(sizes)
    mesh = make_mesh(**given, devices=devices, hosts=hosts, across=crossed)
    if jax.process_count() > 1 and mesh.size != len(devices):
        raise UserError(
            f"--mesh={text} uses {mesh.size} of {len(devices)} devices: with several processes "
            f"use all of them, as with data=-1"
        )
    return mesh
