"""Text files: bytes, text, pieces of bounded size, digests, and which part is held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from gam_jax.data.builders.sources import cannot_read, changed
from sharding.errors import UserError

PIECE = 1 << 20
"""Bytes of text per record at most. A longer document is stored as several, so that neither
writing, reading nor tokenizing it needs memory in proportion to its length."""


def read_bytes(path: Path, sha256: str = "") -> bytes:
    """The content of a file.

    Args:
      path: the file.
      sha256: what it must have; not asked if empty.

    Raises:
      UserError: the file cannot be read, or has other bytes.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise cannot_read(str(path), error) from error
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise changed(str(path))
    return data


def decode(data: bytes, path: object, offset: int, errors: str) -> str:
    """UTF-8 text of a part of a file.

    Args:
      data: the bytes.
      path: the file they come from, for the message.
      offset: where in the file they start, for the message.
      errors: `strict` or `replace`.

    Raises:
      UserError: the bytes are not UTF-8 and errors is `strict`.
    """
    try:
        return data.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: byte {data[error.start]:#04x} at offset "
            f"{offset + error.start}; convert the file or set data.decode_errors='replace'"
        ) from error


def pieces(data: bytes, limit: int = PIECE) -> Iterator[tuple[int, bytes]]:
    """Cuts UTF-8 bytes into (offset, piece) of at most `limit` bytes, at line ends if possible."""
    start = 0
    while start < len(data):
        end = len(data) if len(data) - start <= limit else _cut_before(data, start, start + limit)
        yield start, data[start:end]
        start = end


def tail_start(data: bytes, fraction: float) -> int:
    """Where the last `fraction` of the bytes starts, moved back to a line end if there is one."""
    return _cut_before(data, 0, round(len(data) * (1 - fraction)))


def _cut_before(data: bytes, start: int, end: int) -> int:
    """The last line end in data[start:end], else the last character boundary, as an offset."""
    line_end = data.rfind(b"\n", start, end) + 1
    if line_end > start:
        return line_end
    boundary = end
    while boundary > start and boundary < len(data) and data[boundary] & 0xC0 == 0x80:
        boundary -= 1
    return boundary if boundary > start else end


def held_out(names: Sequence[str], fraction: float) -> frozenset[str]:
    """The share of the names that validation gets: those whose SHA-256 is smallest.

    A name keeps its place when files come and go around it, up to the count.
    """
    count = max(1, round(len(names) * fraction)) if len(names) > 1 else 0
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return frozenset(ranked[:count])


def content_digest(hashes: Sequence[tuple[str, str]], *settings: object) -> str:
    """A digest of settings, and of the name and SHA-256 of each file."""
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, sha256 in hashes:
        digest.update(json.dumps([name, sha256]).encode())
    return digest.hexdigest()[:16]
