"""What devices can do: figures with units and sources, read from a table of profiles."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import pathlib
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from sharding.errors import UserError

FILE = pathlib.Path(__file__).with_name("profiles.toml")
KINDS = ("vendor", "measured", "paper", "derived")
"""Who says a figure: the maker; a measurement; a paper; arithmetic on its source's figures."""

UNITS = {
    "capacity": "B",
    "usable": "B",
    "bandwidth": "B/s",
    "dma": "B/s",
    "latency": "s",
    "devices": "devices",
    "axes": "axes",
}
"""Last word of the name of a figure of memory or links -> its unit."""

SAID = ("value", "unit", "kind", "source")
"""What every figure says."""

WORDS = {"about", "kinds", "dtype", "backend"}
"""What a profile has besides figures."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number about a device.

    Attributes:
      value: the number.
      unit: of the number: FLOP/s, OP/s, B, B/s, s, share, ...
      kind: who says it, one of `KINDS`.
      source: a page, a paper, or the command that measured it.
      note: how it follows from the source, where it does not stand there; may be empty.
    """

    value: float
    unit: str
    kind: str
    source: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Tier:
    """Memory that a device can use.

    Attributes:
      name: "device" is its own; "host", "cxl", "sram" are others.
      profile: whose.
    """

    name: str
    profile: Profile

    @property
    def capacity(self) -> float:
        """Bytes that programs can use; all of them where nobody says how many that is."""
        usable = self.profile.figures.get(f"memory.{self.name}.usable")
        return usable.value if usable else self.profile.value(f"memory.{self.name}.capacity")

    @property
    def bandwidth(self) -> float:
        """Bytes a second, read or written by whoever computes there."""
        return self.profile.value(f"memory.{self.name}.bandwidth")

    @property
    def dma(self) -> float:
        """Bytes a second, copied to the device or from it."""
        return self.profile.value(f"memory.{self.name}.dma")


@dataclasses.dataclass(frozen=True)
class Profile:
    """One device, or one device as a paper has it.

    Attributes:
      name: as command lines say it: "v5e", "a100_80.nanoflow".
      about: in words.
      figures: by name, see the head of profiles.toml.
      kinds: its names, as `jax.Device.device_kind` gives them; none for what a paper has.
      dtype: of the factors of the products whose peak the MFU goes by; None where there is none.
      file: where it stands.
      backend: whose programs it runs: "cpu", "gpu" or "tpu"; None where JAX has none for it.
    """

    name: str
    about: str
    figures: Mapping[str, Figure] = dataclasses.field(repr=False)
    kinds: tuple[str, ...] = ()
    dtype: str | None = None
    file: str = FILE.name
    backend: str | None = None

    def value(self, name: str) -> float:
        """A figure's number.

        Raises:
          UserError: it is not known; the line names profile and figure.
        """
        if name not in self.figures:
            raise UserError(
                f"profile {self.name} has no figure {name}: nobody is known to have said it; put "
                f"it into a file of your own, as {self.file} has them"
            )
        return self.figures[name].value

    def known(self, name: str, otherwise: float) -> float:
        """A figure's number, or another one where it is not known."""
        found = self.figures.get(name)
        return otherwise if found is None else found.value

    @property
    def peak_flops(self) -> float:
        """Operations a second in dense products of factors of `dtype`, at most."""
        return self.value(f"flops.{self.dtype}")

    def flops(self, dtype: str) -> float:
        """Operations a second that dense products of factors of that dtype reach.

        That is the peak, times the share of it that is reached where it is known. Of float32
        it is the rate of factors that are rounded to TensorFloat-32, as JAX does by default,
        where a device has that.
        """
        if dtype == "float32" and "flops.tensorfloat32" in self.figures:
            dtype = "tensorfloat32"
        return self.value(f"flops.{dtype}") * self.known(f"reached.{dtype}", 1.0)

    @property
    def bandwidth(self) -> float:
        """Bytes a second of its own memory that programs reach, likewise."""
        return self.memory.bandwidth * self.known("reached.memory", 1.0)

    @property
    def memory(self) -> Tier:
        """Its own memory."""
        return Tier("device", self)

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """All its memory, in the order of the file."""
        return tuple(Tier(name, self) for name in self._group("memory"))

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels of its links, the innermost first."""
        return tuple(self._group("links"))

    def _group(self, first: str) -> Iterator[str]:
        names = (name.split(".") for name in self.figures)
        return iter(dict.fromkeys(name[1] for name in names if name[0] == first))


@functools.cache
def profiles() -> tuple[Profile, ...]:
    """All that are known, in the order of the file."""
    return tuple(read_profiles(FILE).values())


def profile_of(kind: str) -> Profile | None:
    """The profile of a device by its `device_kind`; None where nothing is known of it."""
    return next((profile for profile in profiles() if kind in profile.kinds), None)


def profile(name: str, what: str = "profile") -> Profile:
    """The profile of that name.

    Raises:
      UserError: there is none; the line names the nearest.
    """
    known = {profile.name: profile for profile in profiles()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known)}"
        raise UserError(f"{what}: unknown '{name}'; {hint}")
    return known[name]


def read_profiles(path: pathlib.Path) -> dict[str, Profile]:
    """The profiles of a file, by name.

    Raises:
      UserError: it cannot be read, or a figure has no value, unit, kind or source.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: it is no file of profiles: {error}") from error
    sources = tables.pop("sources", {})
    found = {}
    for name, table in tables.items():
        if not isinstance(table, dict) or not isinstance(table.get("about"), str):
            raise UserError(f"{path}: profile '{name}' says nothing about itself: add `about`")
        figures = {
            figure: _figure(f"{path}: {name}", figure, entry, sources)
            for word in table
            if word not in WORDS
            for figure, entry in _flat(word, table[word])
        }
        kinds = tuple(table.get("kinds", ()))
        words = table.get("dtype"), path.name, table.get("backend")
        found[name] = Profile(name, table["about"], figures, kinds, *words)
    return found


def _flat(name: str, entry: Any) -> Iterator[tuple[str, Any]]:
    """Figures by dotted name."""
    if not isinstance(entry, dict) or not entry or any(word in entry for word in SAID):
        yield name, entry
        return
    for word, inner in entry.items():
        yield from _flat(f"{name}.{word}", inner)


def _figure(where: str, name: str, entry: Any, sources: Mapping[str, str]) -> Figure:
    """One figure, checked."""
    where, entry = f"{where}.{name}", entry if isinstance(entry, dict) else {}
    for word in SAID:
        if word not in entry:
            raise UserError(f"{where} has no {word}: every figure says its {', '.join(SAID)}")
    value, kind, last = entry["value"], entry["kind"], name.rpartition(".")[2]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: value={value!r} is no number")
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{where}: value={value} must be above 0")
    if kind not in KINDS:
        raise UserError(f"{where}: unknown kind '{kind}'; choose from {', '.join(KINDS)}")
    if name.startswith(("memory.", "links.")) and entry["unit"] != UNITS.get(last, entry["unit"]):
        raise UserError(f"{where}: its unit is '{UNITS[last]}', not '{entry['unit']}'")
    source = sources.get(entry["source"], entry["source"])
    if not source.strip():
        raise UserError(f"{where} has no source: every figure says its source")
    return Figure(float(value), entry["unit"], kind, source, entry.get("note", ""))
