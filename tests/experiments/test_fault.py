"""However a command ends, it ends with one line and the code that says why."""

from __future__ import annotations

import errno
import os
import pathlib
import resource
import stat
import sys
import tempfile

import pytest
from absl import flags
from matplotlib.figure import Figure

from experiments import cli
from experiments.pictures import save
from sharding.checkpoint.__main__ import main as checkpoint
from sharding.errors import UserError
from sharding.fault import FAULT, FULL
from sharding.whole_file import append, write_atomically

ENDS = {
    "bad input": (UserError("a: mend it"), 2, "error: a: mend it"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"),
    "no key": (KeyError("x"), FAULT, "error: a fault of this program, KeyError: 'x'; the trace"),
    "lines": (ValueError("a\nb\n\nc"), FAULT, "error: a fault of this program, ValueError: a b c;"),
    "nothing said": (AssertionError(), FAULT, "error: a fault of this program, AssertionError; "),
    "too deep": (RecursionError("deep"), FAULT, "error: a fault of this program, RecursionError"),
    "no memory": (MemoryError(), 2, "error: no memory is left for what was asked: ask for less"),
    "long": (ValueError("x" * 10_000), FAULT, "error: a fault of this program, ValueError: xxx"),
    "half a sign": (ValueError("\ud800"), FAULT, "error: a fault of this program, ValueError: "),
}


@pytest.fixture
def end(monkeypatch, capsys, tmp_path):
    """Runs a command whose main raises; (code, standard error)."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["gam", "--", "a word"])

    def call(error):
        def main(*_):
            raise error

        with pytest.raises(SystemExit) as ended:
            cli.run(main, lambda: None, takes="words")
        flags.FLAGS.unparse_flags()
        return ended.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(("error", "code", "start"), ENDS.values(), ids=ENDS)
def test_an_end_is_one_line_and_its_code(error, code, start, end, tmp_path):
    found, err = end(error)
    assert found == code
    (line,) = err.splitlines()
    assert line.startswith(start)
    assert len(line) < 500
    traces = list(tmp_path.glob("gam_fault_*.txt"))
    assert len(traces) == (code == FAULT)
    for trace in traces:
        assert line.endswith(f"the trace is in {trace}")
        text = trace.read_text(errors="replace")
        assert text.startswith("gam -- 'a word'\n")
        assert f"raise error\n{type(error).__name__}" in text
        assert stat.S_IMODE(trace.stat().st_mode) == 0o600


def write_to_a_full_device(_):
    with open("/dev/full", "w") as file:
        file.write("words")


def fill(tmp_path, write):
    """Writes a file where the system allows files of no bytes at all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        write(tmp_path / "place")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "whole": lambda path: write_atomically(path, "words"),
    "added": lambda path: append(path, b"words"),
    "picture": lambda path: save(Figure(), path.with_suffix(".png")),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_that_finds_no_room_is_named_and_is_no_fault(write, end, tmp_path):
    with pytest.raises(OSError, match="File too large") as failed:
        fill(tmp_path, write)
    code, err = end(failed.value)
    assert code == 2
    assert err.startswith(f"error: cannot write {tmp_path / 'place'}")
    assert "larger than is allowed; make room there or name another place" in err
    assert not list(tmp_path.glob("gam_fault_*"))
    assert all(not path.stat().st_size for path in tmp_path.glob("place*"))


@pytest.mark.parametrize("number", FULL, ids=errno.errorcode.get)
def test_a_disk_that_takes_no_more_is_told_whatever_it_led_to(number, end):
    error = RuntimeError("something else")
    error.__cause__ = OSError(number, os.strerror(number), "/data/a")
    code, err = end(error)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: cannot write /data/a: {FULL[number]}")


def test_a_full_device_is_told_where_nothing_says_which_file_it_is(end):
    with pytest.raises(OSError, match="No space") as failed:
        write_to_a_full_device(None)
    assert end(failed.value)[0] == 2


def test_an_output_that_is_full_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gam", "word"])
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as ended:
            cli.run(lambda *_: print("found"), lambda: None, takes="words")
    flags.FLAGS.unparse_flags()
    assert ended.value.code == 2
    assert "error: cannot write standard output: no space is left" in capsys.readouterr().err


def test_a_trace_that_cannot_be_written_is_printed(end, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    code, err = end(KeyError("x"))
    assert code == FAULT
    assert "raise error" in err
    assert "the trace stands above" in err.splitlines()[-1]


def test_the_tool_for_checkpoints_has_the_same_ends(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert checkpoint(["diff", "a", "b", "--rtol=nan"]) == 2
    assert "--rtol=nan: --rtol must be finite" in capsys.readouterr().err
    monkeypatch.setattr(pathlib.Path, "is_dir", lambda _: 1 // 0)
    assert checkpoint(["inspect", str(tmp_path)]) == FAULT
    (line,) = capsys.readouterr().err.splitlines()
    assert "a fault of this program, ZeroDivisionError" in line
    monkeypatch.setattr(pathlib.Path, "is_dir", write_to_a_full_device)
    assert checkpoint(["inspect", str(tmp_path)]) == 2
    assert "error: cannot write " in capsys.readouterr().err
