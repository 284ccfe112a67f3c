"""What a file holds, by its content: prose, JSON lines, JSON, Parquet or Arrow, perhaps gzipped.

A name decides nothing but what it promises: a file .jsonl, .parquet or .arrow that holds something
else is refused.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from gam_jax.data.builders.sources import Hashed, Source, cannot_read, changed
from sharding.errors import UserError

HEAD = 1 << 16
"""Bytes that are looked at."""
MAX_LINE = 256 << 20
"""Bytes of a line of JSON, and of a file that is one JSON value."""

TEXT, LINES, JSON, PARQUET, ARROW, STREAM = (
    "text", "JSON lines", "JSON", "Parquet", "Arrow", "Arrow stream",
)  # fmt: skip
TABLES = {PARQUET, ARROW, STREAM}

GZIP = b"\x1f\x8b"
_MAGIC = {
    b"PAR1": PARQUET,
    b"ARROW1": ARROW,
    b"\xff\xff\xff\xff": STREAM,
}
_PACKED = {
    b"FEA1": "Feather 1",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x04\x22\x4d\x18": "lz4",
}
_BLOCK = bytes.fromhex("314159265359")
"""What follows the first four bytes of bzip2, of which `BZh` alone could begin a text."""
_WIDE = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_POINTER = b"version https://git-lfs"
_PROMISED = {
    ".jsonl": {LINES},
    ".ndjson": {LINES},
    ".parquet": {PARQUET},
    ".arrow": {ARROW, STREAM},
    ".feather": {ARROW},
}
EMPTY, NO_TEXTS = "empty", "JSON without texts"
"""Why a file is left out that another word may be said of."""
_CONTROL = frozenset(range(32)) - set(b"\t\n\r\f\v\b\x1b")


class Look(NamedTuple):
    """What a look into a file has shown.

    Attributes:
      kind: what it holds; empty if that is no text.
      packed: whether by gzip.
      mark: whether it begins with a byte order mark.
      why: if it is no text, what it is: completes "3 ...".
    """

    kind: str = ""
    packed: bool = False
    mark: bool = False
    why: str = ""


def look(source: Source, field: str) -> Look:
    """What a file holds.

    Args:
      source: the file.
      field: of the text; empty to take JSON for prose.

    Raises:
      UserError: it cannot be read, or holds something else than its name promises.
    """
    with reading(source) as (file, packed):
        head = file.read(HEAD)
        found = _look(source, head, file, field)._replace(packed=packed)
    promised = _PROMISED.get(suffix(source.name))
    if promised and field and head and found.kind not in promised:
        what = found.why.removeprefix("that are ") or found.kind or "something else"
        raise UserError(
            f"{source.where} is named {suffix(source.name)} and holds {what}: rename or mend it"
        )
    return found


def suffix(name: str) -> str:
    """The ending of a name, in small letters, without .gz."""
    return PurePosixPath(name.lower().removesuffix(".gz")).suffix


def _look(source: Source, head: bytes, file: BinaryIO, field: str) -> Look:
    if not head:
        return Look(why=EMPTY)
    if head.startswith(_POINTER):
        raise UserError(
            f"{source.where} is a pointer of Git LFS, not the file: fetch it with git lfs pull"
        )
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return Look(kind)
    for magic, name in {GZIP: "gzip within gzip", **_PACKED}.items():
        if head.startswith(magic) and len(head) > 8 and (name != "bzip2" or _BLOCK in head[:10]):
            return Look(why=f"packed by {name}")
    if head.startswith(_WIDE):
        return Look(why="in UTF-16 or UTF-32")
    mark = head.startswith(codecs.BOM_UTF8)
    head = head.removeprefix(codecs.BOM_UTF8)
    if b"\0" in head or head.startswith(b"%PDF-") or _is_binary(head):
        return Look(why="not text")
    if suffix(source.name) in (".jsonl", ".ndjson") and field:
        return Look(LINES, mark=mark)
    kind, why = _json_or_text(source, head, file, field) if field else (TEXT, "")
    return Look(kind, mark=mark, why=why)


def _is_binary(head: bytes) -> bool:
    """Whether bytes are neither UTF-8 nor text of an older encoding."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(head)
    except UnicodeDecodeError:
        return not _CONTROL.isdisjoint(head)
    return False


def _json_or_text(source: Source, head: bytes, file: BinaryIO, field: str) -> tuple[str, str]:
    """(kind, why it is left out), of text in UTF-8 or an older encoding."""
    named = suffix(source.name) == ".json"
    first = head.lstrip()[:1]
    if first not in (b"{", b"[") and not named:
        return (LINES, "") if _mostly_objects(head) else (TEXT, "")
    if b"\n" not in head.strip():
        head += file.readline(MAX_LINE)
    rest = file.read(1)
    if _mostly_objects(head) and (b"\n" in head.strip() or rest):
        return LINES, ""
    whole = _parsed(head + rest + file.read(MAX_LINE))
    if isinstance(whole, dict | list):
        return (JSON, "") if _has_texts(whole, field) else ("", NO_TEXTS)
    return ("", "named .json and not JSON") if named else (TEXT, "")


def _mostly_objects(head: bytes) -> bool:
    """Whether half of the whole lines, or more, are JSON objects."""
    lines = [line for line in head.split(b"\n") if line.strip()]
    if len(lines) > 1 and len(head) >= HEAD:
        lines.pop()  # it may be cut
    found = sum(line.lstrip().startswith(b"{") and type(_parsed(line)) is dict for line in lines)
    return bool(lines) and 2 * found >= len(lines)


def _parsed(data: bytes) -> Any:
    """The value of JSON; None if it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _has_texts(whole: Any, field: str) -> bool:
    first = whole[0] if isinstance(whole, list) and whole else whole
    return isinstance(first, dict) and (
        has(first, field) or not TALK.isdisjoint(first)  # which reading refuses in clear words
    )


TALK = frozenset({"messages", "conversations", "conversation", "prompt", "instruction"})
"""Fields of conversations."""


def has(record: dict[str, Any], field: str) -> bool:
    """Whether a record has a field, or the one inside another that `outer.inner` names."""
    outer, dot, inner = field.partition(".")
    return field in record or (
        bool(dot) and isinstance(record.get(outer), dict) and has(record[outer], inner)
    )


@contextlib.contextmanager
def reading(source: Source, digest: str = "") -> Iterator[tuple[BinaryIO, bool]]:
    """Opens a file for reading what it holds, unpacked: (file, whether it was packed by gzip).

    Args:
      source: the file.
      digest: SHA-256 that all of its bytes must have when the block has ended; not asked if empty.

    Raises:
      UserError: it cannot be read or unpacked, or has other bytes.
    """
    try:
        with source.open() as raw:
            hashed = Hashed(raw)
            file: Any = io.BufferedReader(hashed, 1 << 20)
            packed = file.peek(2)[:2] == GZIP
            if packed:
                unpacked: Any = gzip.GzipFile(fileobj=file)
                file = io.BufferedReader(unpacked, 1 << 20)
            yield file, packed
            if digest and hashed.digest() != digest:
                raise changed(source.where)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{source.where} is not a whole gzip file ({error}): pack it again"
        ) from error
    except UserError:
        raise
    except OSError as error:
        raise cannot_read(source.where, error) from error
