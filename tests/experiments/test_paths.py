"""An address where a path belongs is one line and code 2, before anything starts."""

from __future__ import annotations

import ast
import pathlib

import pytest

from gam_jax.convert import from_hf, to_hf
from gam_jax.data.tokenizer import load_tokenizer
from gam_jax.training.folder import RunFolder
from gam_jax.training.warm_start import Source
from sharding.checkpoint import Checkpoints
from sharding.checkpoint.__main__ import main as checkpoint
from sharding.errors import UserError
from sharding.whole_file import write_named

ADDRESS = "gs://bucket/x"
FLAGS = {
    "train": ("--run=", "--init=", "--config.data.dir=", "--config.data.tokenizer="),
    "evaluate": ("--run=",),
    "sample": ("--run=",),
    "convert": ("--run=", "--from-hf=", "--to-hf="),
    "report.__main__": ("--out=", ""),
    "study.__main__": ("--out=", "--data_dir=", "--page="),
    "benchmark.__main__": ("--against=",),
    "compare": ("--out=", "--data_dir="),
}
WORDS = {"study.__main__": ("list",), "benchmark.__main__": ("step",)}


@pytest.mark.parametrize(("name", "flag"), [(n, f) for n, found in FLAGS.items() for f in found])
def test_a_flag_refuses_it(name, flag, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command(name, *WORDS.get(name, ()), f"{flag}{ADDRESS}")
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1
    assert "gs:// is read as text alone" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [("all", ADDRESS), ("compare", "a.json", ADDRESS), ("page", ADDRESS, "b.md")],
    ids=" ".join,
)
def test_a_word_refuses_it(words, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command("benchmark.__main__", *words)
    assert result.code == 2
    assert "gs:// is read as text alone" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("inspect", f"{ADDRESS}@best"),
        ("diff", ADDRESS, "b"),
        ("export", ADDRESS, "--to", "a"),
        ("import", ADDRESS, "--run", "a"),
        ("import", "a", "--run", ADDRESS),
    ],
    ids=" ".join,
)
def test_the_command_of_checkpoints_refuses_it(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint(words) == 2
    assert "gs:// is read as text alone" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


PLACES = {
    "a run": lambda path: RunFolder(pathlib.Path(path)),
    "its source": lambda path: Source.parse(f"{path}@best", "", "", False),
    "checkpoints": lambda path: Checkpoints(pathlib.Path(path)),
    "a tokenizer": load_tokenizer,
    "a model folder": from_hf,
    "a new model folder": lambda path: to_hf(None, {}, path),  # type: ignore[arg-type]
    "a report": lambda path: write_named(pathlib.Path(path), "", "--out"),
}


@pytest.mark.parametrize("address", ["gs://b/x", "s3://b", "memory://x", "http://h/x", "xyz:///x"])
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_every_place_that_takes_a_path_refuses_it(place, address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="is no path of a file system"):
        place(address)
    assert list(tmp_path.iterdir()) == []


def test_home_is_a_person_s_folder(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = command("evaluate", "--run=~/runs/x")
    assert f"{tmp_path}/runs/x holds no run" in result.err


def test_no_flag_that_names_a_file_or_folder_is_a_plain_text():
    """Every flag whose help speaks of a path goes through the door."""
    words = ("folder", "file", "path", "where data")
    names = set()
    for path in pathlib.Path("experiments").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "DEFINE_string":
                name, help_text = node.args[0], node.args[2]
                text = help_text.value if isinstance(help_text, ast.Constant) else ""
                if any(word in str(text).lower() for word in words):
                    names.add(name.value)  # type: ignore[attr-defined]
    # Files that must be there, a name or a file; the name of a data set; numbers of steps.
    assert names == {"cluster", "config", "data", "draft", "name", "profile", "tasks", "trace"}
