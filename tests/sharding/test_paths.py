"""Paths of a file system are told from addresses."""

from __future__ import annotations

import pathlib

import pytest

from sharding.errors import UserError
from sharding.paths import check_local, local_path, made_folder, scheme


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("gs://bucket/x", "gs"),
        ("gs:/bucket/x", "gs"),
        ("file:///x", "file"),
        ("a+b.c-1://x", "a+b.c-1"),
        (pathlib.Path("s3://bucket"), "s3"),
        ("runs/x", ""),
        ("/runs/gs://x", ""),
        ("./gs:/x", ""),
        ("x:y", ""),
        ("c:/x", ""),
        ("1:/x", ""),
        ("", ""),
        ("mix:0.5*text:s3://x", ""),
    ],
)
def test_a_scheme_stands_before_a_slash(path, expected):
    assert scheme(path) == expected


def test_a_local_path_stays_and_home_is_read(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/x") == pathlib.Path("/home/me/x")
    assert local_path("a/../b") == pathlib.Path("a/../b")


@pytest.mark.parametrize(
    "path",
    ["gs://x", "a\0b", "~nobody-of-this-name/x", "a" * 256, "a/" * 3000, "a\ud800"],
    ids=["address", "character 0", "home", "long name", "long path", "half a character"],
)
def test_what_is_none_is_refused_in_one_line_that_names_the_flag(path):
    with pytest.raises(UserError, match="--run=") as error:
        local_path(path, "--run")
    assert "\n" not in str(error.value)
    assert "\0" not in str(error.value)


def test_a_path_that_was_made_of_an_address_is_refused_too():
    with pytest.raises(UserError, match="is no path of a file system"):
        check_local(pathlib.Path("gs://bucket/x") / "metrics.jsonl")


def test_a_folder_that_was_made_and_stays_empty_is_removed_and_no_other(tmp_path):
    (tmp_path / "there").mkdir()
    for wanted in ("a/b/c", "there/d", "there"):
        with made_folder(tmp_path / wanted, "--out"):
            assert (tmp_path / wanted).is_dir()
        assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    with made_folder(tmp_path / "a" / "b", "--out"):
        (tmp_path / "a" / "b" / "file").touch()
    assert (tmp_path / "a" / "b" / "file").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"--out=.*file/a: cannot make"),
        made_folder(tmp_path / "file" / "a", "--out"),
    ):
        raise AssertionError
