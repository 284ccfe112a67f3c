"""Records of prompts and conversations: what is read, and what is refused with file and line."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from gam_jax.data.builders.shares import BOTH, VALIDATION, Measured, sides
from gam_jax.data.builders.text_files import _documents, text_files_builder
from sharding.errors import UserError

SAID = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
PAIR = {"prompt": "a", "completion": "b"}


def read(path, folder, format):
    builder, _ = text_files_builder(str(path), folder / "data", 0.1, "strict", "text", format)
    found = [document for _, document in _documents(builder.builder_config)]
    return [(place, data if format == "text" else json.loads(data)) for place, data in found]


def put(path, *records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def test_lines_items_and_rows_are_records_with_the_fields_that_are_read(tmp_path):
    called = {"role": "assistant", "tool_calls": [{"name": "f"}], "content": None}
    tools = {"messages": [SAID["messages"][0], called], "tools": [{"name": "f"}]}
    kept = {**tools, "messages": [SAID["messages"][0], {"role": "assistant", **called}]}
    del kept["messages"][1]["content"]
    path = put(tmp_path / "a.jsonl", {"id": 1, **SAID}, tools)
    assert read(path, tmp_path, "chat") == [("line 1", SAID), ("line 2", kept)]
    (tmp_path / "b.json").write_text(json.dumps([{**PAIR, "id": 3}, PAIR]))
    assert read(tmp_path / "b.json", tmp_path, "prompt") == [("item 1", PAIR), ("item 2", PAIR)]
    parquet.write_table(
        pa.table({"id": [1, 2], "messages": [SAID["messages"]] * 2}), tmp_path / "c"
    )
    assert read(tmp_path / "c", tmp_path, "chat") == [("row 1", SAID), ("row 2", SAID)]
    parquet.write_table(pa.table({"completion": ["b"], "prompt": ["a"]}), tmp_path / "d")
    assert read(tmp_path / "d", tmp_path, "prompt") == [("row 1", PAIR)]


def said(*messages):
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


REFUSED = {
    "messages as prompts": (
        "prompt",
        SAID,
        'no field "prompt" .*"messages".*: set data.format=chat',
    ),
    "prompts as messages": ("chat", PAIR, 'no field "messages".*: set data.format=prompt'),
    "texts as messages": (
        "chat",
        {"text": "a"},
        'no field "messages".*: write lines such as .*role',
    ),
    "no completion": ("prompt", {"prompt": "a"}, 'no field "completion"'),
    "a list": ("prompt", {"prompt": SAID["messages"], "completion": "a"}, "is a list: .*=chat"),
    "a number": ("prompt", {"prompt": 1, "completion": "a"}, '"prompt" holds no text'),
    "nothing to learn": ("prompt", {"prompt": "a", "completion": " \n"}, "an empty completion"),
    "no messages": ("chat", {"messages": []}, '"messages" is no list of messages'),
    "messages as text": ("chat", {"messages": "a"}, '"messages" is no list of messages'),
    "a text as a message": ("chat", {"messages": ["a"]}, 'message 1: no object with a "role"'),
    "other fields": (
        "chat",
        {"messages": [{"from": "human", "value": "a"}]},
        "message 1: no object",
    ),
    "a wrong role": (
        "chat",
        said(("user", "a"), ("bot", "b")),
        "message 2: role 'bot': use one of",
    ),
    "a list for a role": ("chat", said((["user"], "a")), "message 1: role"),
    "an empty answer": (
        "chat",
        said(("user", "a"), ("assistant", "")),
        "message 2: an empty answer",
    ),
    "no answer": ("chat", said(("user", "a")), "no message of the assistant"),
    "parts": ("chat", said(("user", [{"type": "text"}])), 'message 1: "content" holds no text'),
    "no content": ("chat", {"messages": [{"role": "user"}]}, 'message 1: "content" holds no text'),
    "character 0": ("chat", said(("user", "\0"), ("assistant", "b")), "character 0 in the text"),
    "messages as texts": ("text", SAID, "a conversation .*: set data.format=chat"),
    "prompts as texts": ("text", PAIR, "a conversation .*: set data.format=prompt"),
    "questions as texts": ("text", {"prompt": "a", "answer": "b"}, "set data.format=chat"),
}


@pytest.mark.parametrize(("format", "record", "words"), REFUSED.values(), ids=REFUSED)
def test_a_bad_record_is_one_line_with_file_and_line(tmp_path, format, record, words):
    good = {"text": {"text": "a"}, "prompt": PAIR, "chat": SAID}[format]
    path = put(tmp_path / "a.jsonl", good, good, record)
    with pytest.raises(UserError, match=rf"a\.jsonl, line 3[:,] .*{words}") as caught:
        read(path, tmp_path, format)
    assert "\n" not in str(caught.value)


def test_prose_is_left_out_of_a_folder_and_refused_alone(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    put(folder / "a.jsonl", SAID)
    (folder / "readme.txt").write_text("what is here\n")
    assert [place for place, _ in read(folder, tmp_path, "chat")] == ["line 1"]
    assert "left out: 1 prose (readme.txt)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"readme\.txt is prose, .*data\.format=text"):
        read(folder / "readme.txt", tmp_path, "chat")


def test_records_are_never_cut_in_two_and_one_is_held_out():
    for sizes in [(10, 500, 30), (100, 110, 120), (500, 20)]:
        measured = Measured()
        for size in sizes:
            measured.add(b"x" * size)
        found = sides(measured, 0.05, whole=True)
        assert BOTH not in found
        held = [size for size, side in zip(sizes, found, strict=True) if side == VALIDATION]
        assert held
        assert max(held) < max(sizes)
