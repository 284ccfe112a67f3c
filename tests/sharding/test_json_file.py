"""Every JSON file that a person can hand over: whatever is in it, a reader ends with one line."""

from __future__ import annotations

import dataclasses
import json
import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.benchmark.collect import read as read_benchmark
from experiments.report.runs import _baselines
from experiments.study.found import read as read_found
from gam_jax.convert.folder import read_config, read_tensors
from gam_jax.data.builders.texts import Reading, line_text
from gam_jax.data.tokenizer import load_tokenizer
from gam_jax.training.folder import RunFolder, read_baselines
from gam_jax.training.heartbeat import Beat, read_beats
from gam_jax.training.lock import Owner
from gam_jax.training.lock import _read as read_lock
from sharding.checkpoint.manifest import Unreadable
from sharding.checkpoint.manifest import read as read_manifest
from sharding.errors import UserError
from sharding.json_file import MAX_DEPTH, BadJson, parse_json, read_json, read_record

CASES = {
    "nothing": (b"", "is not JSON"),
    "words": (b"no JSON", "is not JSON"),
    "cut": (b'{"a": 1, "b', "is not JSON"),
    "more than one": (b"{}{}", "is not JSON"),
    "zeros": (bytes(64), "is not JSON"),
    "a mark of bytes": (b"\xef\xbb\xbf{}", "is not JSON"),
    "not UTF-8": (b'{"a": "caf\xe9"}', "is not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "is not UTF-8"),
    "half a pair": (b'{"a": "\\ud800"}', "is not UTF-8"),
    "half a pair as a name": (b'{"\\udfff": 1}', "is not UTF-8"),
    "list": (b"[1]", "holds a list, not an object"),
    "text": (b'"a"', "holds a text, not an object"),
    "number": (b"1", "holds a whole number, not an object"),
    "fraction": (b"1.5", "holds 1.5, not an object"),
    "null": (b"null", "holds null, not an object"),
    "truth": (b"true", "holds True, not an object"),
    "deep": (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "is nested deeper than 64"),
    "deep objects": (b'{"a":' * 100 + b"1" + b"}" * 100, "is nested deeper than 64"),
    "very deep": (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "is nested deeper"),
    "endlessly deep": (b'{"a":' * 200_000, "is nested deeper"),
    "a name twice": (b'{"a": 1, "a": 2}', "it names 'a' twice"),
    "a name twice within": (b'{"b": [{"a": 1, "a": 2}]}', "it names 'a' twice"),
    "endless number": (b'{"a": ' + b"1" * 10_000 + b"}", "is not JSON"),
}
NOT_FINITE = {
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": [-Infinity]}',
    "overflow": b'{"a": 1e999}',
}


@pytest.mark.parametrize(("content", "words"), CASES.values(), ids=CASES)
def test_each_is_one_line_that_names_the_file(content, words, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BadJson) as refused:
        read_json(path)
    message = str(refused.value)
    assert words in message
    assert message.startswith(str(path))
    assert message.endswith(": restore or remove it")
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))


@pytest.mark.parametrize("content", NOT_FINITE.values(), ids=NOT_FINITE)
def test_numbers_that_are_not_finite_are_refused_unless_asked_for(content):
    with pytest.raises(BadJson, match="no number of JSON"):
        parse_json(content, "here")
    assert set(parse_json(content, "here", finite=False)) == {"a"}


def test_depth_and_size_are_counted_exactly(tmp_path):
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(deepest, "here", list)) == deepest
    with pytest.raises(BadJson, match="nested deeper"):
        parse_json(f"[{deepest}]", "here", list)
    (tmp_path / "a").write_text(" " * 8 + "{}")
    assert read_json(tmp_path / "a", max_bytes=10) == {}
    with pytest.raises(BadJson, match="larger than 9 bytes"):
        read_json(tmp_path / "a", max_bytes=9)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(BadJson, match="is not a file"):
            read_json(path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nowhere")


NAMES = st.text(string.printable, max_size=5)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
SIGNS = st.text('{}[]",:0123456789.eE-+truefalsn\\u ', max_size=40)


def outcome(read, *errors):
    """What a reader gives, or its error."""
    try:
        return read()
    except errors as error:
        return error


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.booleans())
def test_what_python_writes_is_read_as_it_was(values, plain):
    assert parse_json(json.dumps(values, ensure_ascii=plain), "here") == values


@given(st.binary(max_size=60) | SIGNS.map(str.encode))
def test_any_bytes_are_an_object_or_one_line(content):
    found = outcome(lambda: parse_json(content, "here"), BadJson)
    assert isinstance(found, dict) or "\n" not in str(found)


def _of_text(path):
    line = path.read_bytes().decode(errors="replace")
    return line_text(line, Reading("text", "strict"), str(path))


READERS = {
    "config.json": ("config.json", lambda p: RunFolder(p.parent).experiment(), UserError),
    "baselines.json": ("baselines.json", lambda p: read_baselines(RunFolder(p.parent)), UserError),
    "figures of a study": ("a.json", lambda p: read_found("a", p.parent), UserError),
    "benchmarks": ("a.json", read_benchmark, UserError),
    "model folder": ("config.json", lambda p: read_config(p.parent), UserError),
    "index": (
        "model.safetensors.index.json",
        lambda p: read_tensors(p.parent),
        UserError,
    ),
    "tokenizer": ("tokenizer.json", load_tokenizer, UserError),
    "line of a text": ("a.jsonl", _of_text, UserError),
    "manifest": ("manifest.json", lambda p: read_manifest(p.parent), Unreadable),
    "record": ("a.json", lambda p: read_record(p, Owner), UserError),
}
OF_OTHER_TYPES = {
    "model is a list": b'{"model": [], "data": {}}',
    "scores are words": b'{"unigram": {"loss": "low"}}',
    "scores are none": b'{"unigram": 3}',
    "arms are a list": b'{"cpu": {"arms": []}}',
    "arms are numbers": b'{"cpu": {"arms": {"a": 1}}}',
    "map is a list": b'{"weight_map": ["a"]}',
    "map leads out of the folder": b'{"weight_map": {"a": "../../secret.safetensors"}}',
    "map leads nowhere": b'{"weight_map": {"a": 1}}',
    "manifest is a list": b'{"manifest": []}',
    "manifest of lists": b'{"manifest": {"format": 1, "arrays": []}}',
    "benchmarks are a list": b'{"benchmarks": []}',
    "benchmarks of numbers": b'{"benchmarks": {"a": 1}, "machine": {}}',
    "process number is a word": b'{"host": "a", "place": "b", "pid": "c", "born": "d", "since": 0}',
    "text is a number": b'{"text": 1}',
}


@pytest.mark.parametrize("content", [c for c, _ in CASES.values()] + list(OF_OTHER_TYPES.values()))
@pytest.mark.parametrize(("file", "read", "error"), READERS.values(), ids=READERS)
def test_every_reader_ends_with_its_own_error_and_one_line(file, read, error, content, tmp_path):
    (tmp_path / file).write_bytes(content)
    found = outcome(lambda: read(tmp_path / file), error)
    if isinstance(found, error):
        assert "\n" not in str(found)
    else:
        assert parse_json(content, "here")  # only what is sound JSON may have been taken


@pytest.mark.parametrize("content", [c for c, _ in CASES.values()] + list(OF_OTHER_TYPES.values()))
def test_notes_of_processes_and_of_runs_that_begin_are_no_notes(content, tmp_path):
    (tmp_path / "run.lock").write_bytes(content)
    (tmp_path / "0.json").write_bytes(content)
    assert read_beats(tmp_path) == {}
    if b"pid" not in content:
        assert read_lock(tmp_path / "run.lock") is None
    (tmp_path / "baselines.json").write_bytes(content)
    assert isinstance(_baselines(RunFolder(tmp_path)), dict)


def test_a_record_comes_back_and_one_of_other_types_does_not(tmp_path):
    path, beat = tmp_path / "a.json", Beat(3, "host", 7)
    path.write_text(json.dumps(dataclasses.asdict(beat)))
    assert read_record(path, Beat) == beat
    for change in ({"rank": "3"}, {"rank": None}, {"rank": 3.5}, {"more": 1}, {"rank": True}):
        path.write_text(json.dumps({**dataclasses.asdict(beat), **change}))
        with pytest.raises(BadJson, match="that is no Beat's"):
            read_record(path, Beat)
    path.write_text('{"rank": 1}')
    with pytest.raises(BadJson, match="lacks fields of a Beat"):
        read_record(path, Beat)
