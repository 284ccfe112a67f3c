"""What devices can do at most, read from profiles.toml."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import tomllib

FILE = pathlib.Path(__file__).with_name("profiles.toml")


@dataclasses.dataclass(frozen=True)
class Profile:
    """One device of a maker.

    Attributes:
      kinds: its names, as `jax.Device.device_kind` gives them.
      peak_flops: operations a second in dense products, of one JAX device.
      dtype: of the factors of those products.
      source: the maker's page, and what is read from it.
    """

    kinds: tuple[str, ...]
    peak_flops: float
    dtype: str
    source: str


@functools.cache
def profiles() -> tuple[Profile, ...]:
    """All that are known, in the order of the file."""
    tables = tomllib.loads(FILE.read_text(encoding="utf-8"))["device"]
    return tuple(Profile(**{**table, "kinds": tuple(table["kinds"])}) for table in tables)


def profile_of(kind: str) -> Profile | None:
    """The profile of a device by its `device_kind`; None where nothing is known of it."""
    return next((profile for profile in profiles() if kind in profile.kinds), None)
