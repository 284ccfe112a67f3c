"""Folders and globs are walked by one rule: each real file once, and what is skipped is said."""

from __future__ import annotations

import os
import socket

import pytest

from gam_jax.data.builders.text_files import find_files
from sharding.errors import UserError
from tests.gam_jax.data.reading import write


@pytest.fixture
def place(tmp_path):
    """A folder with files, hidden ones among them, beside another one."""
    write(tmp_path / "in", dict.fromkeys(("a.txt", "sub/b.py", ".git/c.txt", "sub/.d"), b"text\n"))
    write(tmp_path / "out", {"e.txt": b"text\n"})
    return tmp_path / "in"


def names(path):
    return [source.name for source in find_files(str(path)).sources]


@pytest.mark.parametrize("ending", ["", "/", "/**", "/**/*"])
def test_a_folder_and_its_globs_mean_the_same_files(place, ending):
    (place / "linked").symlink_to(place.parent / "out")
    (place / "loop").symlink_to(place)
    (place / "z.txt").symlink_to(place / "a.txt")
    (place / "0.txt").symlink_to(place / "a.txt")
    os.link(place / "a.txt", place / "hard.txt")
    assert names(f"{place}{ending}") == ["a.txt", "linked/e.txt", "sub/b.py"]


def test_a_linked_folder_inside_a_loop_of_links_is_read_once(place):
    for number in range(5):
        (place / f"loop{number}").symlink_to(place.parent)
    (place.parent / "out" / "back").symlink_to(place)
    found = find_files(str(place))
    assert len({source.where for source in found.sources}) == len(found.sources) == 3


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt"]),
        ("*/*.py", ["sub/b.py"]),
        ("**/*.py", ["sub/b.py"]),
        ("**/b.py", ["sub/b.py"]),
        ("s?b/[!a].py", ["sub/b.py"]),
        ("**/sub/**", ["sub/b.py"]),
        ("*", ["a.txt"]),
        ("*.md", []),
        ("no/*.md", []),
    ],
)
def test_globs_match_whole_names_and_never_hidden_ones(place, pattern, expected):
    assert names(place / pattern) == expected


def test_a_name_that_is_there_is_no_glob(place):
    write(place, {"a[1].txt": b"x", "a1.txt": b"y"})
    assert names(place / "a[1].txt") == ["a[1].txt"]


def test_what_is_skipped_is_told_by_kind(place, monkeypatch):
    monkeypatch.chdir(place)
    os.mkfifo("pipe")
    (place / "broken").symlink_to("nowhere")
    (place / "self").symlink_to("self")
    (place / "again").symlink_to("a.txt")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        told = find_files(str(place)).told()
    for words in (
        "2 hidden (.git, sub/.d)",
        "1 that are a pipe (pipe)",
        "1 that are a socket (socket)",
        "2 broken links (broken, self)",
        "1 read under another name (again)",
    ):
        assert words in told


def test_what_cannot_be_read_is_skipped_and_told(place, monkeypatch):
    """Root reads everything, so the system's answers are given here."""
    scandir, access = os.scandir, os.access

    def refused(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(
        os, "access", lambda path, mode: "a.txt" not in str(path) and access(path, mode)
    )
    found = find_files(str(place))
    assert found.sources == []
    assert "2 unreadable (a.txt, sub)" in found.told()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", "does not exist: check the path"),
        ("a.txt/b", "does not exist"),
        ("broken", "is a broken link"),
        ("pipe", "is a pipe, not a file"),
        ("a" * 300, "longer than a path may be"),
        ("a\0b", "holds the character 0"),
    ],
)
def test_a_path_that_is_neither_file_nor_folder_is_refused(place, name, words):
    os.mkfifo(place / "pipe")
    (place / "broken").symlink_to("nowhere")
    with pytest.raises(UserError, match=words) as error:
        find_files(f"{place}/{name}")
    assert "\n" not in str(error.value)
    assert "\0" not in str(error.value)
