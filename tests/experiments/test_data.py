"""`gam data show`: rows as text, with what counts and where documents begin."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments.data import COLOUR, shown
from gam_jax.data.tokenizer import ByteTokenizer
from tests.experiments import commands


@pytest.fixture
def show(monkeypatch, capsys, tmp_path):
    """Runs `gam data show` with these fields of the data."""

    def call(*words, **fields):
        own = {"dir": str(tmp_path / "data"), **fields}
        settings = [f"--config.data.{name}={value}" for name, value in own.items()]
        return commands.in_process(monkeypatch, capsys, "data", "show", *settings, *words)

    return call


@pytest.fixture
def pairs(tmp_path):
    """Forty prompts with their completions."""
    records = [{"prompt": f"{i:02d}+1=", "completion": f"{i + 1:02d}"} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"text:{tmp_path}/a.jsonl"


def test_what_counts_stands_between_marks_and_documents_begin_on_lines(show, pairs):
    result = show("--rows=2", name=pairs, format="prompt", documents="packed", window=20)
    assert (result.code, result.err) == (0, "")
    first, *lines = result.out.splitlines()
    assert first.startswith(f"{pairs}: ")
    assert first.endswith("% of the tokens count")
    assert lines[0] == "--- row 0: 2 documents, 6 of 20 tokens count"
    assert [line for line in lines if line.startswith("--- doc")] == [
        "--- document at 0",
        "--- document at 8",
    ] * 2
    texts = [line for line in lines if not line.startswith("---")]
    for text in texts:
        number = int(text[1:3])
        assert text == f"\u2205{number:02d}+1=[[{number + 1:02d}\u2205]]"
    assert len(texts) == 4


def test_one_document_in_a_row_and_a_stream_are_shown_too(show, pairs, tmp_path):
    alone = show("--rows=1", name=pairs, format="prompt", documents="rows", window=12)
    assert alone.out.count("--- document at 0") == 1
    assert alone.out.count("\n") == 4
    (tmp_path / "b.txt").write_text("some words\n" * 40)
    joined = show("--rows=1", "--from-row=1", name=f"text:{tmp_path}/b.txt", window=11)
    assert joined.out.splitlines()[1:] == [
        "--- row 1: 11 of 11 tokens count",
        "s[[ome words",
        "s]]",
    ]


@pytest.mark.parametrize(
    ("words", "fields", "told"),
    [
        (("--from-row=99",), {}, "--from-row=99: there are 36 rows, from 0"),
        (
            (),
            {"documents": "joined"},
            "data.documents=joined joins them: set data.documents=packed",
        ),
        ((), {"format": "chat"}, "has no chat template"),
        ((), {"format": "text"}, "set data.format=prompt"),
    ],
)
def test_what_cannot_be_shown_is_one_line(show, pairs, words, fields, told):
    given = {"name": pairs, "format": "prompt", "documents": "rows", "window": 12, **fields}
    result = show(*words, **given)
    assert result.code == 2
    assert told in result.err
    assert result.err.count("\n") == 1


def test_data_that_are_no_text_are_refused(monkeypatch, capsys):
    words = ("show", "--config.data.name=recall", "--config.model.vocab=64")
    result = commands.in_process(monkeypatch, capsys, "data", *words)
    assert (result.code, result.out) == (2, "")
    assert "data.name=recall is no text" in result.err


def test_colours_and_what_a_terminal_would_obey():
    tokens = np.frombuffer(b"a\x1b[2Jb\n", np.uint8)
    text = shown(tokens, np.array([0, 0, 0, 0, 0, 1, 1]) > 0, ByteTokenizer(), COLOUR)
    assert text == "a\\x1b[2J\x1b[1;32mb\n\x1b[0m"
