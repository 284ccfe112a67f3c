"""One thing that is tried."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from hypothesis import strategies as st

from tests.fuzz.law import gam


class Case(NamedTuple):
    """One thing that is tried.

    Attributes:
      told: it, on one line.
      files: what is written into the folder first: path -> content.
      call: what is done then.
    """

    told: str
    files: dict[str, bytes]
    call: Callable[[], object]


Cases = st.SearchStrategy[Case]


def command(*line: str, files: dict[str, bytes] | None = None) -> Case:
    """A command line, in a folder with some files replaced."""
    told = " ".join(map(ascii, line))
    told += "".join(f" {name}={content[:300]!r}" for name, content in (files or {}).items())
    return Case(told, files or {}, functools.partial(gam, *line))
