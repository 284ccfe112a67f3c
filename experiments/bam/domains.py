"""Three domains of real text that every machine with this project's dependencies has."""

from __future__ import annotations

import pathlib
import sysconfig
from collections.abc import Iterator
from pydoc_data import topics

import jaxlib
import numpy as np

from gam_jax.data.builders.files import held_out
from sharding.errors import UserError

LIMIT = 600_000
"""Bytes of a domain at most."""
HELD_OUT = 0.1


def documents() -> dict[str, dict[str, bytes]]:
    """Domain -> name -> text.

    "python": modules of the standard library. "english": the language's own reference manual, as
    `help()` shows it. "c": headers of NumPy and jaxlib.
    """
    stdlib = pathlib.Path(sysconfig.get_paths()["stdlib"])
    headers = {}
    for package in (np, jaxlib):
        root = pathlib.Path(str(package.__file__)).parent
        headers |= {f"{root.name}/{p.relative_to(root)}": p for p in sorted(root.rglob("*.h"))}
    modules = {path.name: path for path in sorted(stdlib.glob("*.py"))}
    found = {
        "python": dict(_limited(modules)),
        "english": {name: text.encode() for name, text in sorted(topics.topics.items())},
        "c": dict(_limited(headers)),
    }
    for domain, texts in found.items():
        if len(texts) < 2:
            raise UserError(f"domain {domain}: this Python installation has no text of it")
    return found


def _limited(paths: dict[str, pathlib.Path]) -> Iterator[tuple[str, bytes]]:
    """Files in the order of their names, up to the limit together."""
    room = LIMIT
    for name, path in paths.items():
        text = path.read_bytes()
        if len(text) <= room:
            room -= len(text)
            yield name, text


def splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Domain -> (training bytes, validation bytes), uint8; whole documents are held out."""
    found = {}
    for domain, texts in documents().items():
        kept = held_out(list(texts), HELD_OUT)
        parts = [
            b"\n\n".join(text for name, text in texts.items() if (name in kept) == held)
            for held in (False, True)
        ]
        training, validation = (np.frombuffer(part, np.uint8) for part in parts)
        found[domain] = training, validation
    return found
