"""However a command ends, it ends with one line and the code that says why."""

from __future__ import annotations

import pathlib
import stat
import sys
import tempfile

import pytest
from absl import flags

from experiments import cli
from sharding.checkpoint.__main__ import main as checkpoint
from sharding.errors import UserError
from sharding.fault import FAULT

ENDS = {
    "bad input": (UserError("a: mend it"), 2, "error: a: mend it"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "interrupted"),
    "no key": (KeyError("x"), FAULT, "error: a fault of this program, KeyError: 'x'; the trace"),
    "lines": (ValueError("a\nb\n\nc"), FAULT, "error: a fault of this program, ValueError: a b c;"),
    "nothing said": (AssertionError(), FAULT, "error: a fault of this program, AssertionError; "),
    "too deep": (RecursionError("deep"), FAULT, "error: a fault of this program, RecursionError"),
    "no memory": (MemoryError(), FAULT, "error: a fault of this program, MemoryError; the trace"),
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
