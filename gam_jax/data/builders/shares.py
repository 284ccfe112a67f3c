"""Which documents are held out for validation: a share of the bytes, decided by content."""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Callable, Iterable

import numpy as np

from gam_jax.data.builders.files import tail_start
from sharding.errors import UserError

TRAIN, VALIDATION, BOTH = 0, 1, 2
"""Sides; of a document on both, the head trains and the tail validates."""


LINE = 64
"""Bytes of a line, about: a text of a few lines cannot be cut at one of them more finely."""


class Measured:
    """Size and hash of each document, in order: 16 bytes a document."""

    def __init__(self) -> None:
        self._sizes, self._hashes = array("Q"), array("Q")

    def add(self, document: bytes) -> None:
        """Notes the next document."""
        self._sizes.append(len(document))
        digest = hashlib.sha256(document).digest()
        self._hashes.append(int.from_bytes(digest[:8], "big"))

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def sizes(self) -> np.ndarray:
        """Bytes of each, uint64 [N]."""
        return np.frombuffer(self._sizes, np.uint64) if self._sizes else np.zeros(0, np.uint64)

    @property
    def hashes(self) -> np.ndarray:
        """Of the content of each, uint64 [N]."""
        return np.frombuffer(self._hashes, np.uint64) if self._hashes else np.zeros(0, np.uint64)


@dataclasses.dataclass(frozen=True)
class Shares:
    """The side of every document.

    Attributes:
      sides: uint8 [N].
      cuts: of each document on both sides, by its number: where its tail starts.
      bytes: of all documents.
      held: of what is held out.
    """

    sides: np.ndarray
    cuts: dict[int, int]
    bytes: int
    held: int

    def part(self, number: int, document: bytes, split: str) -> bytes:
        """What a document gives to a split, perhaps nothing."""
        side = self.sides[number]
        if side == BOTH:
            cut = self.cuts[number]
            return document[:cut] if split == "train" else document[cut:]
        return document if (side == VALIDATION) == (split == "validation") else b""

    def start(self, number: int, split: str) -> int:
        """Where that part starts in the document, in bytes."""
        return self.cuts.get(number, 0) if split == "validation" else 0


def sides(measured: Measured, fraction: float, whole: bool = False) -> np.ndarray:
    """The side of each document.

    A document of more than `fraction` of all bytes is on both sides. The others are held out in
    the order of a hash of their content until their share is reached, copies together: each one
    that brings what is held out nearer to it.

    Args:
      measured: all documents.
      fraction: the share that is asked for.
      whole: no document may be cut, so none is on both sides; and one at least is held out, if
        there are several.

    Returns:
      uint8 [N].
    """
    sizes = measured.sizes.astype(np.float64)
    cut = (sizes > fraction * sizes.sum()) & (not whole)
    found = np.where(cut, BOTH, TRAIN).astype(np.uint8)
    small = np.flatnonzero(found == TRAIN)
    hashes, group = np.unique(measured.hashes[small], return_inverse=True)
    weights = np.bincount(group, sizes[small], len(hashes))
    held, wanted = 0.0, fraction * weights.sum()
    chosen = np.zeros(len(hashes), bool)
    for number, weight in enumerate(weights):
        if held >= wanted:
            break
        if abs(held + weight - wanted) < wanted - held:
            chosen[number], held = True, held + weight
    if whole and len(weights) > 1 and not chosen.any():
        chosen[np.argmin(weights)] = True
    found[small] = np.where(chosen[group], VALIDATION, TRAIN)
    return found


def shares(
    measured: Measured,
    fraction: float,
    documents: Callable[[], Iterable[bytes]],
    whole: bool = False,
) -> Shares:
    """Sides, and where the documents on both are cut.

    Args:
      measured: all documents.
      fraction: the share that is asked for.
      documents: reads them again.
      whole: no document may be cut.
    """
    found = sides(measured, fraction, whole)
    cuts: dict[int, int] = {}
    if np.any(found == BOTH):
        for number, document in enumerate(documents()):
            if found[number] == BOTH:
                cuts[number] = tail_start(document, fraction)
    sizes = measured.sizes
    held = int(sizes[found == VALIDATION].sum())
    held += sum(int(sizes[number]) - cut for number, cut in cuts.items())
    return Shares(found, cuts, int(sizes.sum()), held)


def check_share(
    found: Shares, measured: Measured, fraction: float, name: Callable[[int], str], what: str
) -> None:
    """Refuses less than half, or more than twice, of the share that was asked for.

    A difference of less than a line is allowed.

    Args:
      found: the sides.
      measured: all documents.
      fraction: the share that was asked for.
      name: of a document, by its number.
      what: they are, for the message.

    Raises:
      UserError: it names the largest document.
    """
    real = found.held / found.bytes
    off = abs(found.held - fraction * found.bytes)
    if 0 < real < 1 and (fraction / 2 <= real <= 2 * fraction or off <= LINE):
        return
    largest = int(np.argmax(measured.sizes))
    why = (
        "ends no line near its cut: break its lines"
        if found.sides[largest] == BOTH
        else "stands on one side with its copies: leave them out"
    )
    raise UserError(
        f"{what}: {real:.1%} of the bytes would be held out, and data.validation_fraction asks for "
        f"{fraction:.1%}; the largest document, {name(largest)} "
        f"({int(measured.sizes[largest]):,} of {found.bytes:,} bytes), {why}, add text, or ask "
        f"for another share"
    )
