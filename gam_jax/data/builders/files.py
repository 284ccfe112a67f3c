"""Reading text files: bytes, text, pieces of bounded size, and which part is held out."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from sharding.errors import UserError

PIECE = 1 << 20
"""Bytes of text per record at most. A longer document is stored as several, so that neither
writing, reading nor tokenizing it needs memory in proportion to its length."""


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if its name ends in .gz.

    Raises:
      UserError: the file cannot be read or unpacked.
    """
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read()
        return path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}): pack it again") from error
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror or error}; mend its permissions or leave it out"
        ) from error


def decode(data: bytes, path: Path, offset: int, errors: str) -> str:
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


def json_lines(data: bytes, path: Path, errors: str) -> list[str]:
    """The field "text" of every line of a .jsonl file.

    Raises:
      UserError: a line is not an object with a string "text".
    """
    texts, offset = [], 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            texts.append(_json_text(decode(line, path, offset, errors), path, number, errors))
        offset += len(line) + 1
    return texts


def _json_text(line: str, path: Path, number: int, errors: str) -> str:
    try:
        text = json.loads(line)["text"]
        # Lone surrogates are valid JSON and no text: UTF-8 cannot hold them.
        text.encode("utf-8", errors)
    except RecursionError as error:
        raise UserError(f"{path}, line {number}: nested too deeply to be a text") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {number}: not JSON ({error.msg}); write one JSON object per line"
        ) from error
    except UnicodeEncodeError as error:
        raise UserError(
            f"{path}, line {number}: a lone surrogate in the text; mend the line or set "
            "data.decode_errors='replace'"
        ) from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f'{path}, line {number}: no field "text" that holds a string; '
            'write lines such as {"text": "..."}'
        ) from error
    except ValueError as error:  # a number of too many digits
        raise UserError(f"{path}, line {number}: not JSON ({error})") from error
    return text.encode("utf-8", errors).decode("utf-8")


def held_out(names: Sequence[str], fraction: float) -> frozenset[str]:
    """The share of the names that validation gets: those whose SHA-256 is smallest.

    A name keeps its place when files come and go around it, up to the count.
    """
    count = max(1, round(len(names) * fraction)) if len(names) > 1 else 0
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    return frozenset(ranked[:count])


def content_digest(files: Sequence[tuple[str, Path]], *settings: object) -> tuple[str, int]:
    """A digest of relative names, contents and settings; and the total size in bytes.

    Raises:
      UserError: a file cannot be read.
    """
    total, digest = 0, hashlib.sha256(json.dumps(settings).encode())
    for name, path in files:
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256")
                total += file.tell()
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror}; mend its permissions or leave it out"
            ) from error
        digest.update(json.dumps([name, content.hexdigest()]).encode())
    return digest.hexdigest()[:16], total
