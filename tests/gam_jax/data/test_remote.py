"""Text at an address is read through fsspec; what it cannot read is one line."""

from __future__ import annotations

import gzip
import json
import sys

import pytest

from gam_jax.data.builders.text_files import find_files
from gam_jax.data.corpus import open_corpus
from gam_jax.data.text import Text
from sharding.errors import UserError
from tests.gam_jax.data.reading import texts

fsspec = pytest.importorskip("fsspec")
PROSE = "a line of prose\n" * 9


@pytest.fixture
def bucket():
    """Files in memory."""
    files = fsspec.filesystem("memory")
    rows = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(3))
    contents = {
        "a.txt": PROSE.encode(),
        "sub/b.jsonl.gz": gzip.compress(rows.encode()),
        "sub/.hidden": b"x",
        "c.png": b"\x89PNG\0\0",
    }
    for name, content in contents.items():
        files.pipe(f"/bucket/{name}", content)
    yield "memory://bucket"
    files.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a.txt", [PROSE]),
        ("", [PROSE, "document 0", "document 1", "document 2"]),
        ("/*.txt", [PROSE]),
        ("/**/*.gz", ["document 0", "document 1", "document 2"]),
    ],
)
def test_files_folders_and_globs_are_read(bucket, tmp_path, path, expected):
    assert texts(f"{bucket}{path}", tmp_path) == expected


def test_it_is_a_corpus_like_any_other(bucket, tmp_path):
    corpus = open_corpus(Text(name=f"text:{bucket}/a.txt", dir=str(tmp_path)))
    assert "".join(corpus.documents("train")) == "a line of prose\n" * 8
    assert find_files(bucket).told() == "1 hidden (sub/.hidden)"


def test_an_address_of_a_local_file_is_that_file(tmp_path):
    (tmp_path / "a.txt").write_text(PROSE)
    assert texts(f"file://{tmp_path}/a.txt", tmp_path / "data") == [PROSE]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("memory://bucket/nothing", "does not exist, or holds no file"),
        ("memory://bucket/*.md", "does not exist, or holds no file"),
        ("nothing://bucket/x", "cannot be read .*nothing"),
        ("s3://bucket/x", "cannot be read .*s3fs"),
    ],
)
def test_what_cannot_be_reached_is_one_line(bucket, tmp_path, address, words):
    with pytest.raises(UserError, match=words) as error:
        texts(address, tmp_path)
    assert "\n" not in str(error.value)


def test_without_fsspec_the_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"pip install 'gam_jax\[remote\]'"):
        texts("memory://bucket/a.txt", tmp_path)


def test_reading_breaks_off_in_one_line(bucket, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no credentials\nat all")

    monkeypatch.setattr(fsspec.filesystem("memory"), "open", broken)
    with pytest.raises(UserError, match=r"cannot be read \(no credentials at all\)"):
        texts(f"{bucket}/a.txt", tmp_path)
