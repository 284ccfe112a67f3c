"""The documents of a file, of whatever kind `formats.look` has found it to be."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from gam_jax.data.builders import records
from gam_jax.data.builders.files import decode
from gam_jax.data.builders.formats import (
    ARROW,
    LINES,
    MAX_LINE,
    PARQUET,
    TABLES,
    TALK,
    TEXT,
    Look,
    has,
    reading,
)
from gam_jax.data.builders.sources import Source, cannot_read, changed
from sharding.errors import UserError

MAX_UNPACKED = 2 << 30
"""Bytes of prose that are unpacked from one gzip file: it is one document, held in memory."""
ROWS = 256
"""Rows of a table that are in memory at once."""


class Reading(NamedTuple):
    """How texts are read.

    Attributes:
      field: of the text, in records; `outer.inner` for one inside another.
      errors: what is done with bytes that are no UTF-8: `strict` or `replace`.
      format: `text`; of `prompt` and `chat` a document is a record, see `records.canonical`.
    """

    field: str
    errors: str
    format: str = "text"


class Document(NamedTuple):
    """A document of a file.

    Attributes:
      place: in the file, as `line 3`; empty for the whole of it.
      data: its bytes.
    """

    place: str
    data: bytes


def documents(source: Source, look: Look, how: Reading, digest: str) -> Iterator[Document]:
    """The documents of a file that are not empty, in order, without a byte order mark.

    Prose is one document, and its bytes are not yet known to be UTF-8. All others are.

    Args:
      source: the file.
      look: what it holds.
      how: its texts are read.
      digest: SHA-256 of the file, which is compared when all is read.

    Raises:
      UserError: the file cannot be read, or what it holds is not texts; names file and line.
    """
    for document in _documents(source, look, how, digest):
        if document.data:
            yield document


def _documents(source: Source, look: Look, how: Reading, digest: str) -> Iterator[Document]:
    if look.kind in TABLES:
        yield from _rows(source, look, how, digest)
        return
    with reading(source, digest) as (file, packed):
        if look.mark:
            file.read(len(codecs.BOM_UTF8))
        if look.kind == TEXT:
            yield Document("", _prose(source, file, packed))
        elif look.kind == LINES:
            yield from _lines(source, file, how)
        else:
            yield from _whole(source, file, how)


def _prose(source: Source, file: BinaryIO, packed: bool) -> bytes:
    data = _unpacked(source, file) if packed else file.read()
    if (zero := data.find(b"\0")) >= 0:
        raise UserError(
            f"{source.where} is not text: byte 0x00 at offset {zero}; convert it or leave it out"
        )
    return data


def _unpacked(source: Source, file: BinaryIO) -> bytes:
    parts, left = [], MAX_UNPACKED
    while part := file.read(1 << 20):
        left -= len(part)
        if left < 0:
            raise UserError(
                f"{source.where} unpacks to more than {MAX_UNPACKED >> 30} GiB of one text: "
                f"unpack it"
            )
        parts.append(part)
    return b"".join(parts)


def _lines(source: Source, file: BinaryIO, how: Reading) -> Iterator[Document]:
    number = offset = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        place = f"line {number}"
        where = f"{source.where}, {place}"
        if len(line) > MAX_LINE:
            raise UserError(f"{where}: longer than {MAX_LINE >> 20} MiB: split its text")
        if line.strip():
            text = decode(line, source.where, offset, how.errors)
            yield Document(place, line_text(text, how, where))
        offset += len(line)


def line_text(line: str, how: Reading, where: str) -> bytes:
    """The text of a line of JSON as UTF-8.

    Raises:
      UserError: it is no object, or has no such text.
    """
    return _text(_parse(line, where), how, where)


def _whole(source: Source, file: BinaryIO, how: Reading) -> Iterator[Document]:
    text = decode(file.read(2 * MAX_LINE), source.where, 0, how.errors)
    value = _parse(text, source.where)
    for number, record in enumerate(value if isinstance(value, list) else [value], start=1):
        place = f"item {number}" if isinstance(value, list) else ""
        where = f"{source.where}, {place}" if place else source.where
        yield Document(place, _text(record, how, where))


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply to be a text") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not JSON ({error.msg}); write one JSON object per line"
        ) from error
    except ValueError as error:  # a number of too many digits, or a name twice
        raise UserError(f"{where}: not JSON ({error})") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object names a field twice")
    return found


def _text(record: Any, how: Reading, where: str) -> bytes:
    """The text of a record as UTF-8."""
    if not isinstance(record, dict):
        raise UserError(
            f"{where}: {kind_of(record)}, not an object; write lines such as {_example(how)}"
        )
    if how.format != "text":
        record = cleaned(record, how.errors, where)
        return records.canonical(record, how.format, where)
    value = field_of(record, how.field, where)
    if isinstance(value, bytes):  # of a table
        value = decode(value, where, 0, how.errors)
    if not isinstance(value, str):
        raise UserError(
            f'{where}: no field "{how.field}" that holds a string, but {kind_of(value)}; '
            f"data.field names the field of the text"
        )
    return utf8(value, how.errors, where)


def utf8(text: str, errors: str, where: str) -> bytes:
    """A text as UTF-8, without what is no text: halves of surrogate pairs, and character 0.

    Raises:
      UserError: it holds such, and errors is `strict`.
    """
    replaceable = 'mend it or set data.decode_errors="replace"'
    if "\0" in text:
        if errors == "strict":
            raise UserError(f"{where}: character 0 in the text; {replaceable}")
        text = text.replace("\0", "\ufffd")
    try:
        return text.encode("utf-8", errors)
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: a lone surrogate in the text; {replaceable}") from error


def field_of(record: Mapping[str, Any], field: str, where: str) -> Any:
    """The value of a field, or of the one inside another that `outer.inner` names.

    Raises:
      UserError: there is none.
    """
    if field in record:
        return record[field]
    if isinstance(record, dict) and has(record, field):
        outer, _, inner = field.partition(".")
        return field_of(record[outer], inner, where)
    raise no_field(record, field, where, ", and data.field='' reads JSON as it stands")


def no_field(names: Any, field: str, where: str, also: str = "") -> UserError:
    """The error for a record or table without the field of the text."""
    found = ", ".join(f'"{str(name)[:40]}"' for name in list(names)[:6])
    if talk := TALK.intersection(names):
        return UserError(
            f'{where}: a conversation ("{min(talk)}"), not a text: {records.mend(names)}, or name '
            f"a field that holds text by data.field"
        )
    return UserError(
        f'{where}: no field "{field}" that holds a string (there are {found or "none"}); '
        f"data.field names the field of the text{also}"
    )


def cleaned(value: Any, errors: str, where: str) -> Any:
    """A value of JSON with all of its texts as `utf8` has them, and no fields that are null."""
    if isinstance(value, str):
        return utf8(value, errors, where).decode()
    if isinstance(value, list):
        return [cleaned(item, errors, where) for item in value]
    if isinstance(value, dict):
        items = ((cleaned(k, errors, where), v) for k, v in value.items() if v is not None)
        return {name: cleaned(item, errors, where) for name, item in items}
    if value is None or isinstance(value, bool | int | float):
        return value
    raise UserError(f"{where}: {kind_of(value)} where text was expected: write JSON lines")


def _example(how: Reading) -> str:
    return records.EXAMPLES.get(how.format) or f'{{"{how.field}": "..."}}'


def kind_of(value: Any) -> str:
    """What a value of JSON is, for messages."""
    kinds = {dict: "an object", list: "a list", str: "a string", type(None): "null", bool: "a bool"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "other data")


def _rows(source: Source, look: Look, how: Reading, digest: str) -> Iterator[Document]:
    """The texts of a table's column."""
    import pyarrow

    if not how.field:
        raise UserError(
            f"{source.where} holds a table ({look.kind}): data.field='' names no column of it"
        )
    try:
        with source.open() as file:
            yield from _column(source, file, look, how)
            file.seek(0)
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:  # type: ignore[arg-type]
                raise changed(source.where)
    except UserError:
        raise
    except (pyarrow.ArrowException, ValueError, EOFError, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise cannot_read(source.where, error) from error
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{source.where} is not a whole {look.kind} file: {reason}") from error


def _column(source: Source, file: BinaryIO, look: Look, how: Reading) -> Iterator[Document]:
    if look.packed:
        with reading(source) as (unpacked, _):
            file = io.BytesIO(unpacked.read(MAX_UNPACKED + 1))
        if len(file.getbuffer()) > MAX_UNPACKED:
            raise UserError(f"{source.where} unpacks to more than {MAX_UNPACKED >> 30} GiB")
    number = 0
    for batch in _batches(file, look.kind, how, source.where):
        for record in batch:
            number += 1
            place = f"row {number}"
            yield Document(place, _text(record, how, f"{source.where}, {place}"))


def _batches(file: Any, kind: str, how: Reading, where: str) -> Iterator[list[dict[str, Any]]]:
    """Rows of a table, with the columns that are read alone."""
    from pyarrow import ipc, parquet

    if kind == PARQUET:
        table: Any = parquet.ParquetFile(file)
        columns = _names(table.schema_arrow.names, how, where)
        batches = table.iter_batches(batch_size=ROWS, columns=columns)
    elif kind == ARROW:
        table = ipc.open_file(file)
        columns = _names(table.schema.names, how, where)
        batches = (table.get_batch(i) for i in range(table.num_record_batches))
    else:
        table = ipc.open_stream(file)
        columns = _names(table.schema.names, how, where)
        batches = table
    for batch in batches:
        batch.validate(full=True)  # what a damaged file says of its parts is not checked before
        read = batch.select(columns)
        for start in range(0, len(read), ROWS):
            yield read.slice(start, ROWS).to_pylist()


def _names(names: list[str], how: Reading, where: str) -> list[str]:
    """The columns that are read: those of a record, or the one that a field is, or is inside of."""
    if how.format != "text":
        return [name for name in records.FIELDS[how.format] if name in names]
    field = how.field
    outer = field.partition(".")[0]
    if field not in names and outer not in names:
        raise no_field(names, field, where)
    return [field if field in names else outer]
