"""The user's own text: what is read, how it is split, when it is rebuilt, what is refused."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gam_jax.data.builders import files
from gam_jax.data.builders.prepare import prepare, quiet
from gam_jax.data.builders.text_files import text_files_builder
from gam_jax.data.corpus import open_corpus
from gam_jax.data.text import Text
from sharding.errors import UserError


@pytest.fixture
def opened(tmp_path):
    """Opens `text:` below the test's folder."""
    (tmp_path / "in").mkdir()

    def open_text(name: str = "", **settings):
        path = tmp_path / "in" / name
        return open_corpus(Text(name=f"text:{path}", dir=str(tmp_path / "data"), **settings))

    open_text.folder = tmp_path / "in"
    return open_text


def built_sets(opened) -> int:
    return len(list((opened.folder.parent / "data" / "text_files").iterdir()))


def test_a_single_file_gives_its_tail_cut_at_a_line_end(opened):
    text = "".join(f"line {i} é\n" for i in range(100))
    (opened.folder / "notes.txt").write_text(text, encoding="utf-8")
    corpus = opened("notes.txt", validation_fraction=0.25)
    train, validation = ("".join(corpus.documents(s)) for s in ("train", "validation"))
    assert train + validation == text
    assert train.endswith("\n")
    assert 23 <= validation.count("\n") <= 27
    assert corpus.bytes("train") + corpus.bytes("validation") == len(text.encode())


def test_line_ends_are_kept_as_they_are(opened):
    (opened.folder / "dos.txt").write_bytes(b"one\r\ntwo\rthree\n" * 40)
    corpus = opened("dos.txt")
    assert "".join(corpus.documents("train")).startswith("one\r\ntwo\rthree\n")


def test_a_folder_of_many_small_files_is_split_by_file(opened):
    for i in range(20):
        (opened.folder / f"{i}.md").write_text(f"# {i:02}\n")
    corpus = opened()
    documents = {split: set(corpus.documents(split)) for split in corpus.splits}
    assert documents["train"] | documents["validation"] == {f"# {i:02}\n" for i in range(20)}
    assert len(documents["validation"]) == 2


def test_documents_follow_the_order_of_names(opened):
    for name in ("b", "a", "c"):
        (opened.folder / f"{name}.txt").write_text(f"{name}\n" * 10)
    assert [d[0] for d in opened().documents("train")] == ["a", "b", "c"]


def test_json_lines_are_documents(opened):
    lines = [json.dumps({"text": f"document {i}", "id": i}) for i in range(10)]
    (opened.folder / "set.jsonl").write_text("\n".join(lines) + "\n")
    corpus = opened("set.jsonl", validation_fraction=0.2)
    train, validation = (list(corpus.documents(split)) for split in corpus.splits)
    assert sorted(train + validation) == [f"document {i}" for i in range(10)]
    assert len(validation) == 2
    assert train == sorted(train)


def test_gzip_is_unpacked(opened):
    (opened.folder / "notes.txt.gz").write_bytes(gzip.compress(b"a line\n" * 50))
    assert "".join(opened().documents("train")) == "a line\n" * 45


def test_a_long_document_is_one_document_in_several_records(opened, monkeypatch):
    text = "".join(f"line {i}\n" for i in range(1000))
    (opened.folder / "long.txt").write_text(text)
    monkeypatch.setattr(files.pieces, "__defaults__", (100,))
    documents = opened("long.txt").documents("train")
    pieces = list(documents.pieces())
    assert len(documents) == 1
    assert documents[-1] == documents[0]
    assert documents[0:1] == [documents[0]]
    assert len(pieces) > 50
    assert [s for s, _ in pieces] == [True] + [False] * (len(pieces) - 1)
    assert "".join(t for _, t in pieces) == documents[0] == text[: len(documents[0])]
    with pytest.raises(IndexError):
        documents[1]


def test_rebuilt_when_the_content_changes_and_only_then(opened):
    path = opened.folder / "notes.txt"
    path.write_text("one line\n" * 100)
    first = opened("notes.txt")
    assert opened("notes.txt").fingerprint == first.fingerprint
    assert built_sets(opened) == 1
    os.utime(path, (1, 1))
    assert opened("notes.txt").fingerprint == first.fingerprint
    assert built_sets(opened) == 1
    path.write_text("two line\n" * 100)
    changed = opened("notes.txt")
    assert changed.fingerprint != first.fingerprint
    assert built_sets(opened) == 2
    assert changed.documents("train")[0].startswith("two")


def test_a_builder_made_before_another_built_reads_what_it_built(tmp_path):
    (tmp_path / "a.txt").write_text("text\n" * 100)
    with quiet():
        early, _ = text_files_builder(str(tmp_path / "a.txt"), tmp_path / "data", 0.1, "strict")
        other, _ = text_files_builder(str(tmp_path / "a.txt"), tmp_path / "data", 0.1, "strict")
        prepare(other, "text")
        early = prepare(early, "text")
    assert len(early.as_data_source(split="train")) == 1


@given(st.text(min_size=1, max_size=200), st.integers(4, 40))
def test_pieces_are_bounded_whole_characters_and_lose_nothing(text, limit):
    data = text.encode()
    cut = list(files.pieces(data, limit))
    assert b"".join(piece for _, piece in cut) == data
    assert "".join(piece.decode() for _, piece in cut) == text
    assert all(0 < len(piece) <= limit and data[o : o + len(piece)] == piece for o, piece in cut)


@given(st.sets(st.text(min_size=1, max_size=8), min_size=2, max_size=40), st.floats(0.01, 0.99))
def test_held_out_is_a_share_that_does_not_depend_on_order(names, fraction):
    ordered = sorted(names)
    held = files.held_out(ordered, fraction)
    assert held == files.held_out(ordered[::-1], fraction)
    assert held <= names
    assert len(held) == max(1, round(len(names) * fraction))


def refused(opened, *expected: str, name: str = "", **settings) -> None:
    """The corpus is refused in one line that holds these words."""
    with pytest.raises(UserError) as caught:
        opened(name, **settings)
    message = str(caught.value)
    assert "\n" not in message
    for words in expected:
        assert words in message


def test_a_missing_path_is_refused(opened):
    refused(opened, "does not exist", "absent.txt", "check the path", name="absent.txt")


def test_an_empty_folder_is_refused(opened):
    refused(opened, "names no file", "check it")


def test_empty_files_are_refused(opened):
    (opened.folder / "empty.txt").touch()
    refused(opened, "holds no text", "1 empty (empty.txt)", "add some text")


def test_no_path_is_refused(tmp_path):
    with pytest.raises(UserError, match="names no path: give one"):
        open_corpus(Text(name="text:", dir=str(tmp_path)))


def test_text_that_is_not_utf8_is_refused_with_file_and_offset(opened):
    (opened.folder / "latin.txt").write_bytes(b"caf\xe9\n" * 5)
    refused(opened, "latin.txt is not UTF-8", "0xe9 at offset 3", "decode_errors='replace'")
    assert not list((opened.folder.parent / "data").rglob("*.array_record*"))
    corpus = opened(decode_errors="replace")
    assert corpus.documents("train")[0].startswith("caf\ufffd\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"body": "x"}', 'no field "text"'),
        ('{"text": 3}', 'no field "text" that holds a string'),
        ("[1, 2]", "a list, not an object"),
        ('{"text": "a", "text": "b"}', "names a field twice"),
        ('{"text": "a\\u0000"}', "character 0"),
        ('{"messages": []}', "a conversation"),
        ("{not json", "not JSON"),
        ('{"text": "\\ud800"}', "lone surrogate"),
    ],
)
def test_a_bad_json_line_is_refused_with_its_number(opened, line, expected):
    (opened.folder / "set.jsonl").write_text('{"text": "fine"}\n\n' + line + "\n")
    refused(opened, "set.jsonl, line 3", expected)


def test_a_broken_gzip_file_is_refused(opened):
    (opened.folder / "notes.txt.gz").write_bytes(gzip.compress(b"a line\n" * 50)[:-10])
    refused(opened, "notes.txt.gz is not a whole gzip file", "pack it again")


def test_a_text_too_short_to_split_is_refused(opened):
    (opened.folder / "set.jsonl").write_text('{"text": "a"}\n')
    refused(opened, "too little text for a validation split", "add more")


def test_one_document_gives_its_tail_in_whatever_form_it_comes(opened):
    (opened.folder / "set.jsonl").write_text('{"text": "0123456789"}\n')
    corpus = opened()
    assert [corpus.documents(split)[0] for split in corpus.splits] == ["012345678", "9"]


def test_a_single_text_has_the_fingerprint_that_it_always_had(opened):
    (opened.folder / "notes.txt").write_text("one line\n" * 100)
    assert opened("notes.txt").fingerprint == "7ff762f39fb8301d"


def test_too_little_free_disk_is_refused_before_anything_is_written(opened, monkeypatch):
    (opened.folder / "notes.txt").write_text("a line\n" * 1000)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 0))
    refused(opened, "no room on disk", "data.dir at another disk")
    assert not list((opened.folder.parent / "data").rglob("*.array_record*"))


def test_a_disk_that_fills_up_leaves_nothing_half_written(opened, monkeypatch):
    from tensorflow_datasets.core import file_adapters

    def write_half(path, iterator):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    (opened.folder / "notes.txt").write_text("a line\n" * 1000)
    with monkeypatch.context() as patch:
        adapter = file_adapters.ArrayRecordFileAdapter
        patch.setattr(adapter, "write_examples", staticmethod(write_half))
        refused(opened, "no room on disk", "free some space")
    assert not list((opened.folder.parent / "data").rglob("*.array_record*"))
    assert "".join(opened().documents("train")) == "a line\n" * 900
