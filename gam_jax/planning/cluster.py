"""Many devices of one kind and the levels of links that join them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

from gam_jax.planning.profiles import Figure, Profile, Tier, profile, read_profiles
from sharding.errors import UserError
from sharding.paths import local_path
from sharding.topology import MOST

TORUS = "torus"
NETWORK = "network"
"""The level that joins hosts of GPUs, or slices of TPUs."""
BETWEEN = "between"
"""The level that joins clusters."""


@dataclasses.dataclass(frozen=True)
class Level:
    """Links that join groups of devices which stand one after another.

    Attributes:
      name: as the profile has it.
      devices: of a group, all that these links and those of inner levels join.
      bandwidth: bytes a second that a device sends, one way.
      latency: seconds of a message; 0 where nobody has said it.
      shape: of a torus, the outermost direction first; () where any device reaches any other.
      ring: of a torus, the least size of a direction that closes to a ring.
    """

    name: str
    devices: int
    bandwidth: float
    latency: float = 0.0
    shape: tuple[int, ...] = ()
    ring: int = 1

    def along(self, stride: int, size: int) -> float:
        """Bytes a second that one mesh axis has of these links, see `Cluster.crossed`.

        A torus has two links in each of its directions. An axis has both of each direction that it
        covers as a ring, and one of each that it covers in part.

        Args:
          stride: devices between two neighbours of the axis.
          size: members of the axis here.
        """
        if not self.shape:
            return self.bandwidth
        links, inner = 0, 1
        for direction in reversed(self.shape):
            covered = min(stride * size, inner * direction) / max(stride, inner)
            if covered > 1:
                links += 2 if covered == direction >= max(self.ring, 3) else 1
            inner *= direction
        return self.bandwidth * max(links, 1) / (2 * len(self.shape))


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Devices in the order in which a mesh takes them: the inner levels' groups stand together.

    Attributes:
      name: as it was asked for.
      profile: of each device; of several clusters together the least of each figure.
      levels: the innermost first; the last joins all.
      parts: the clusters that are joined; () where it is one.
    """

    name: str
    profile: Profile
    levels: tuple[Level, ...]
    parts: tuple[Cluster, ...] = ()

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.levels[-1].devices if self.levels else 1

    def crossed(self, stride: int, size: int) -> list[tuple[int, float, float]]:
        """The levels that a mesh axis crosses, the innermost first.

        Args:
          stride: devices between two neighbours of the axis: the product of the axes inside it.
          size: of the axis.

        Returns:
          Members that a level joins beyond those of the levels inside it, its bytes a second and
          its latency.
        """
        found, inside = [], 1
        for level in self.levels:
            even = level.devices % stride == 0  # else some neighbours stand in two groups
            reach = math.gcd(size, level.devices // stride) if even else 1
            members = max(reach // inside, 1)
            if members > 1:
                along = level.along(stride * inside, members)
                found.append((members, along, level.latency))
                inside *= members
        return found


def clusters(text: str, what: str = "--cluster") -> Cluster:
    """One cluster, or several joined by the slowest network of theirs: "A+B", see `cluster`.

    A step is as fast as its slowest device, so each figure is the least of all, and each latency
    the most, see `_slowest`.

    Raises:
      UserError: see `cluster`; clusters of unequal numbers of devices, or of levels that differ.
    """
    parts = [cluster(part, what) for part in text.split("+")]
    if len(parts) == 1:
        return parts[0]
    if len({tuple(level.devices for level in part.levels) for part in parts}) > 1:
        raise UserError(f"{what}={text}: the clusters differ in devices: give as many of each")
    slowest = _slowest(text, [part.profile for part in parts])
    inside = tuple(
        dataclasses.replace(
            min((part.levels[i] for part in parts), key=lambda level: level.bandwidth),
            latency=max(part.levels[i].latency for part in parts),
        )
        for i in range(len(parts[0].levels))
    )
    between = dataclasses.replace(_level(slowest, NETWORK, 0), name=BETWEEN)
    whole = dataclasses.replace(between, devices=len(parts) * parts[0].devices)
    return Cluster(text, slowest, (*inside, whole), tuple(parts))


def _slowest(name: str, parts: Sequence[Profile]) -> Profile:
    """A device that is as slow in each figure as the slowest of some, and has as little memory.

    What is reached and what programs can use are taken of each device before they are compared.
    What one of them has no figure of, this one has none of either.
    """
    known = [one.figures for one in parts]
    figures: dict[str, Figure] = {}
    for figure in known[0]:
        if all(figure in each for each in known):
            worst = max if figure.endswith(".latency") else min
            figures[figure] = worst((each[figure] for each in known), key=lambda one: one.value)
    figures = {
        figure: each
        for figure, each in figures.items()
        if not figure.startswith("reached.") and not figure.endswith(".usable")
    }
    for figure, each in list(figures.items()):
        kind, _, word = figure.partition(".")
        if kind == "flops":
            value = min(one.flops(word) for one in parts)
        elif figure == "memory.device.bandwidth":
            value = min(one.bandwidth for one in parts)
        elif kind == "memory" and word.endswith(".capacity"):
            tier = word.removesuffix(".capacity")
            value = min(Tier(tier, one).capacity for one in parts)
        else:
            continue
        figures[figure] = dataclasses.replace(each, value=value)
    return dataclasses.replace(parts[0], name=name, figures=figures)


def cluster(text: str, what: str = "--cluster") -> Cluster:
    """The cluster that a command line asks for.

    Args:
      text: NAME:SHAPE of a torus of TPUs, as "v5e:16x16", or NAME:SHAPE*SLICES; NAME:HOSTSxDEVICES
        of others, as "h100:2x8"; FILE.toml:DEVICES, of the one profile in that file.
      what: names it in a message.

    Raises:
      UserError: an unknown name, a shape that there is not, links that nobody has told of.
    """
    name, _, shape = text.rpartition(":") if ":" in text else (text, "", "")
    found = _profile(name, f"{what}={text}")
    sizes = re.fullmatch(r"(\d{1,6}(?:x\d{1,6})*)(?:\*(\d{1,6}))?", shape)
    if sizes is None or 0 in (numbers := [int(n) for n in re.findall(r"\d+", shape)]):
        raise UserError(f"{what}={text}: give a shape, as {name}:{_like(found)}")
    if math.prod(numbers) > MOST:
        raise UserError(f"{what}={text}: that is more than {MOST:,} devices")
    slices = numbers.pop() if sizes[2] else 1
    wanted = int(found.known("links.torus.axes", 0))
    if wanted and len(numbers) != wanted:
        raise UserError(f"{what}={text}: give {wanted} numbers, as {name}:{_like(found)}")
    if not wanted and (len(numbers) > 2 or sizes[2]):
        raise UserError(f"{what}={text}: give HOSTSxDEVICES, as {name}:{_like(found)}")
    levels = _torus(found, numbers, slices) if wanted else _hosts(found, numbers)
    return Cluster(text, found, tuple(level for level in levels if level.devices > 1))


def _profile(name: str, what: str) -> Profile:
    if not name.endswith(".toml"):
        return profile(name, what)
    found = list(read_profiles(local_path(name)).values())
    if len(found) != 1:
        raise UserError(f"{what}: {name} has {len(found)} profiles: leave one in it")
    return found[0]


def _like(profile: Profile) -> str:
    axes = int(profile.known("links.torus.axes", 0))
    return "x".join("4" * axes) if axes else "2x8"


def _torus(profile: Profile, shape: list[int], slices: int) -> list[Level]:
    size = math.prod(shape)
    size *= int(profile.known("chip.devices", 1))
    ring = int(profile.known("links.torus.ring", 1))
    found = []
    if size > 1:
        found.append(_level(profile, TORUS, size, tuple(shape), ring))
    if slices > 1:
        found.append(_level(profile, NETWORK, size * slices))
    return found


def _hosts(profile: Profile, numbers: list[int]) -> list[Level]:
    """The profile's own levels inside a host, then its host, then the network."""
    hosts, inside = (1, *numbers) if len(numbers) == 1 else numbers
    names = [name for name in profile.levels if name != NETWORK]
    found = []
    for name in names:
        size = int(min(profile.known(f"links.{name}.devices", math.inf), inside))
        if size > (found[-1].devices if found else 1):
            found.append(_level(profile, name, size))
    if inside > (found[-1].devices if found else 1):
        found.append(_level(profile, NETWORK, inside))
    if hosts > 1:
        found.append(_level(profile, NETWORK, hosts * inside))
    return found


def _level(
    profile: Profile, name: str, devices: int, shape: tuple[int, ...] = (), ring: int = 1
) -> Level:
    bandwidth = profile.value(f"links.{name}.bandwidth")
    latency = profile.known(f"links.{name}.latency", 0.0)
    return Level(name, devices, bandwidth, latency, shape, ring)


def strides(sizes: dict[str, int]) -> dict[str, int]:
    """Devices between two neighbours of each axis of a mesh, the outermost axis first."""
    inner = itertools.accumulate(reversed(list(sizes.values())), lambda x, y: x * y, initial=1)
    return dict(zip(reversed(list(sizes)), inner, strict=False))
