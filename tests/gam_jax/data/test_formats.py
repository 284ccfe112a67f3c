"""What a file holds is known by its content: every name and packing of a format reads alike."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from gam_jax.data.builders import formats, texts
from sharding.errors import UserError
from tests.gam_jax.data.reading import texts as read
from tests.gam_jax.data.reading import write

TEXTS = [f"document {i}: füßé" for i in range(5)]
PROSE = "a line of prose\n" * 9


def lines(found=tuple(TEXTS), field="text"):
    rows = [json.dumps({"timestamp": "2019", field: text, "url": None}) for text in found]
    return ("\n".join(rows) + "\n").encode()


def table(kind=None, name="text"):
    values = [text.encode() for text in TEXTS] if kind in BINARY else TEXTS
    return pa.table({"id": range(len(TEXTS)), name: pa.array(values, type=kind)})


def as_parquet(held):
    sink = io.BytesIO()
    parquet.write_table(held, sink)
    return sink.getvalue()


def as_arrow(held, new):
    sink = io.BytesIO()
    with new(sink, held.schema) as writer:
        writer.write_table(held)
    return sink.getvalue()


BINARY = (pa.binary(), pa.large_binary())
FORMATS = {
    "JSON lines": lines(),
    "lines that end as on Windows": lines().replace(b"\n", b"\r\n"),
    "with a byte order mark": codecs.BOM_UTF8 + lines(),
    "no last line end": lines().rstrip(),
    "empty lines between": lines().replace(b"\n", b"\n\n"),
    "a list": json.dumps([{"text": text} for text in TEXTS]).encode(),
    "a list on many lines": json.dumps([{"text": text} for text in TEXTS], indent=2).encode(),
    "Parquet": as_parquet(table()),
    "Parquet of bytes": as_parquet(table(pa.binary())),
    "Parquet of large strings": as_parquet(table(pa.large_string())),
    "Parquet of a dictionary": as_parquet(table(pa.dictionary(pa.int8(), pa.string()))),
    "Arrow file": as_arrow(table(), ipc.new_file),
    "Arrow stream": as_arrow(table(), ipc.new_stream),
}
NAMES = ("part-00000", "x.txt", "c4-train.00000-of-01024.json", "x.json.gz", "x.gz")


@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", FORMATS.values(), ids=FORMATS)
def test_records_are_read_alike_under_any_name_packed_or_not(tmp_path, content, name, packed):
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    assert read(tmp_path / name, tmp_path / "data") == TEXTS


@pytest.mark.parametrize(
    "content",
    [
        PROSE,
        "[1, 2]\n" * 20,
        "[a link](of/markdown)\n" + PROSE,
        "{braces} of TeX\n" + PROSE,
        PROSE + '{"text": "an example"}\n',
        "BZh begins this text\n" * 3,
        "PAR is no Parquet\n" * 3,
        "x",
    ],
)
def test_prose_stays_prose(tmp_path, content):
    (tmp_path / "notes.txt").write_text(content)
    assert read(tmp_path / "notes.txt", tmp_path / "data") == [content]


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "notes.txt").write_bytes(codecs.BOM_UTF8 + PROSE.encode())
    assert read(tmp_path / "notes.txt", tmp_path / "data") == [PROSE]


@pytest.mark.parametrize("content", [lines(field="body"), as_parquet(table(name="body"))])
def test_the_field_of_the_text_is_named(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert read(tmp_path / "x", tmp_path / "data", field="body") == TEXTS


@pytest.mark.parametrize("form", ["lines", "Parquet", "a dot in the name"])
def test_a_field_may_be_inside_another(tmp_path, form):
    rows = [{"meta": {"body": text}} for text in TEXTS]
    if form == "a dot in the name":
        rows = [{"meta.body": text} for text in TEXTS]
    content = as_parquet(pa.Table.from_pylist(rows)) if form == "Parquet" else None
    (tmp_path / "x").write_bytes(content or "\n".join(map(json.dumps, rows)).encode())
    assert read(tmp_path / "x", tmp_path / "data", field="meta.body") == TEXTS


def test_no_field_reads_json_as_it_stands(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(lines())
    assert read(tmp_path / "x.jsonl", tmp_path / "data", field="") == [lines().decode()]


def test_a_folder_is_read_whole_or_what_is_left_out_is_named_with_counts(tmp_path, capfd):
    files = {
        "a.rst": PROSE.encode(),
        "b/c": lines(),
        "d.parquet": as_parquet(table()),
        ".git/config": b"x",
        "e.png": b"\x89PNG\r\n\x1a\n\0\0",
        "f.pyc": b"\0\1\2",
        "g.zip": b"PK\x03\x04 and so on",
        "h.txt": PROSE.encode("utf-16"),
        "package.json": b'{"name": "x"}',
        "i.txt": b"",
        "j\nk.txt": PROSE.encode(),
    }
    write(tmp_path / "in", files)
    found = read(tmp_path / "in", tmp_path / "data")
    assert found == [PROSE, *TEXTS, *TEXTS, PROSE]
    (line,) = capfd.readouterr().err.splitlines()
    assert "4 files read" in line
    for words in (
        "1 hidden (.git)",
        "2 not text (e.png, f.pyc)",
        "1 packed by zip (g.zip)",
        "1 in UTF-16 or UTF-32 (h.txt)",
        "1 JSON without texts (package.json)",
        "1 empty (i.txt)",
    ):
        assert words in line


def record(line):
    return lines() + line + b"\n"


REFUSED = {
    "another field": ("x", lines(field="body"), 'line 1: no field "text".*"body"'),
    "another column": ("x", as_parquet(table(name="body")), 'no field "text".*"id", "body"'),
    "a column of numbers": ("x", as_parquet(table()), None),
    "null": ("x", record(b'{"text": null}'), "line 6: .*null"),
    "a list for a text": ("x", record(b'{"text": ["a"]}'), "line 6: .*a list"),
    "a list for an object": ("x", record(b'["a"]'), "line 6: a list, not an object"),
    "a number for an object": ("x", record(b"17"), "line 6: a number, not an object"),
    "prose after lines": ("x.txt", record(b"and so on"), "x.txt, line 6: not JSON"),
    "prose before lines": ("x.txt", b"# data\n" + lines(), "x.txt, line 1: not JSON"),
    "a field twice": ("x", record(b'{"text": "a", "text": "b"}'), "line 6: .*twice"),
    "nested too deeply": ("x", record(b'{"text": "a", "b": ' + b"[" * 10**5), "too deeply"),
    "character 0": ("x", record(b'{"text": "\\u0000"}'), "line 6: character 0"),
    "a list of strings": ("x.json", b'["a", "b"]', "item 1: a string, not an object"),
    "an object without": ("x.json", b'{\n "a": 1\n}', 'no field "text".*"a"'),
    "messages": ("x", b'{"messages": []}\n' * 3, "line 1: a conversation"),
    "prompts": ("x.json", b'{"prompt": "a", "answer": "b"}\n' * 3, "line 1: a conversation"),
    "conversations in a list": ("x.json", b'[{"messages": []}]', "item 1: a conversation"),
    "broken JSON": ("x.json", b'{"text": "a', "named .json and not JSON"),
    "prose that is named so": ("x.jsonl", PROSE.encode(), "x.jsonl, line 1: not JSON"),
    "prose named Parquet": ("x.parquet", PROSE.encode(), "named .parquet and holds text"),
    "a pointer": ("x.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "UTF-16": ("x.txt", PROSE.encode("utf-16"), "in UTF-16"),
    "UTF-16 without a mark": ("x.txt", PROSE.encode("utf-16-le"), "not text"),
    "a byte 0 far in": ("x.txt", b"a line\n" * 10_000 + b"\0", "byte 0x00 at offset 70000"),
    "gzip twice": ("x.gz", gzip.compress(gzip.compress(lines())), "gzip within gzip: unpack it"),
    "half of a gzip file": ("x.gz", gzip.compress(lines())[:-20], "not a whole gzip file"),
    "more than a gzip file": ("x.gz", gzip.compress(lines()) + b"more", "not a whole gzip file"),
    "bzip2": ("x", bz2.compress(lines()), "packed by bzip2: unpack it"),
    "half of a Parquet file": ("x", as_parquet(table())[:-30], "not a whole Parquet file"),
    "half of an Arrow file": ("x", as_arrow(table(), ipc.new_file)[:-9], "not a whole Arrow file"),
    "half of a stream": ("x", as_arrow(table(), ipc.new_stream)[:-99], "not a whole Arrow stream"),
}


@pytest.mark.parametrize(("name", "content", "words"), REFUSED.values(), ids=REFUSED)
def test_what_holds_no_texts_is_refused_in_one_line_with_file_and_line(
    tmp_path, name, content, words
):
    (tmp_path / name).write_bytes(content)
    field = "text" if words else "id"
    with pytest.raises(
        UserError, match=words or 'row 1: no field "id" that holds a string'
    ) as error:
        read(tmp_path / name, tmp_path / "data", field=field)
    assert "\n" not in str(error.value)


def test_a_table_is_refused_where_no_field_is_named(tmp_path):
    (tmp_path / "x").write_bytes(as_parquet(table()))
    with pytest.raises(UserError, match="names no column"):
        read(tmp_path / "x", tmp_path / "data", field="")


def test_what_cannot_be_text_may_be_replaced(tmp_path):
    (tmp_path / "x").write_bytes(lines(["a", "b"]) + b'{"text": "\\u0000 \\ud800 \xe9"}\n')
    assert read(tmp_path / "x", tmp_path / "data", errors="replace")[2] == "\ufffd ? \ufffd"


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_has_a_longest_length(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(texts, "MAX_LINE", 1000)
    content = lines(["a", "b" * 2000])
    (tmp_path / "x").write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match=r"x, line 2: longer than"):
        read(tmp_path / "x", tmp_path / "data")


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "MAX_UNPACKED", 1 << 20)
    for content in (b"prose\n" * 10**6, as_parquet(pa.table({"text": ["ab" * 10**6]})) * 60):
        (tmp_path / "x").write_bytes(gzip.compress(content))
        with pytest.raises(UserError, match="unpacks to more than"):
            read(tmp_path / "x", tmp_path / "data")


def test_a_line_longer_than_what_is_looked_at_is_json_all_the_same(tmp_path):
    long = [("word " * formats.HEAD).strip(), "short"]
    (tmp_path / "x").write_bytes(lines(long))
    assert read(tmp_path / "x", tmp_path / "data") == long


@st.composite
def damaged(draw):
    """What one of the formats holds, with a few bytes cut out, put in or changed."""
    content = draw(st.sampled_from(sorted(FORMATS.values())))
    for _ in range(draw(st.integers(1, 3))):
        place, length = draw(st.integers(0, len(content))), draw(st.integers(0, 20))
        content = content[:place] + draw(st.binary(max_size=4)) + content[place + length :]
    return gzip.compress(content) if draw(st.booleans()) else content


BYTES = st.binary(max_size=80) | damaged()
FRESH = [HealthCheck.function_scoped_fixture]


def ends_well(folder, content):
    """Whether these bytes are texts, or refused in one line."""
    for name in ("x", "x.json", "x.jsonl"):
        (folder / name).write_bytes(content)
        try:
            read(folder / name, folder / "data", "replace")
        except UserError as error:
            if "\n" in str(error):
                return False
    return True


@settings(max_examples=40, suppress_health_check=FRESH)
@given(BYTES)
def test_any_bytes_are_texts_or_one_line(tmp_path, content):
    assert ends_well(tmp_path, content)


@pytest.mark.slow
@settings(max_examples=4000, suppress_health_check=FRESH)
@given(damaged())
def test_any_damage_ends_in_texts_or_one_line(tmp_path, content):
    assert ends_well(tmp_path, content)
