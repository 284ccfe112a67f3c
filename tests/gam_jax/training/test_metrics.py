"""A log of metrics never loses a row to a bad line, wherever that line is."""

from __future__ import annotations

import contextlib
import json
import pathlib
import resource
import struct
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from gam_jax.training.metrics import LINE_BYTES, MetricsWriter, points, read_log, read_metrics
from sharding.errors import UserError

BAD = {
    "blank": b"",
    "words": b"no row",
    "cut": b'{"step": 3, "sp',
    "two rows": b'{"step": 3, "split": "train"}{"step": 4, "split": "train"}',
    "list": b'[{"step": 3, "split": "train"}]',
    "number": b"7",
    "null": b"null",
    "no step": b'{"split": "train", "loss": 1.0}',
    "step of another type": b'{"step": "3", "split": "train"}',
    "step that is a fraction": b'{"step": 3.5, "split": "train"}',
    "step that is a truth": b'{"step": true, "split": "train"}',
    "step below 0": b'{"step": -1, "split": "train"}',
    "step beyond all counting": b'{"step": 1' + b"0" * 40 + b', "split": "train"}',
    "no split": b'{"step": 3}',
    "split of another type": b'{"step": 3, "split": 1}',
    "not UTF-8": b'{"step": 3, "split": "caf\xe9"}',
    "half a pair": b'{"step": 3, "split": "\\ud800"}',
    "zeros": b"\0" * 40,
    "deep": b"[" * 100_000,
    "deep and closed": b'{"step": 3, "split": "train", "x": ' + b"[" * 200 + b"]" * 200 + b"}",
    "a name twice": b'{"step": 3, "step": 4, "split": "train"}',
    "long": b'{"step": 3, "split": "' + b"x" * LINE_BYTES + b'"}',
    "very long": b"x" * (3 * LINE_BYTES),
}
ODD = ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r")
"""What Python takes for the end of a line, and JSON does not."""
TAILS = (b"", b'{"step": 1, "spl', b"\0\0")
"""How a log may end where its process was killed or its machine lost power."""


@st.composite
def logs(draw):
    """Lines of a log, each a row (a dict) or a bad line (bytes)."""
    row = st.fixed_dictionaries(
        {"step": st.integers(0, 9), "split": st.sampled_from(["train", "validation"])},
        optional={
            "loss": st.floats(),
            "note": st.text(st.sampled_from([*ODD, "a", '"']), max_size=4),
        },
    )
    return draw(st.lists(st.one_of(row, st.sampled_from(list(BAD.values()))), max_size=8))


def written(lines, draw_ascii=True):
    """The bytes of a log."""
    encoded = (
        line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=draw_ascii).encode()
        for line in lines
    )
    return b"".join(line + b"\n" for line in encoded)


@given(
    logs(), st.booleans(), st.integers(0, 9), st.sampled_from([b"", b'{"step": 1, "spl', b"\0\0"])
)
def test_a_resume_keeps_every_row_and_every_bad_line(lines, plain, step, tail):
    rows = [line for line in lines if isinstance(line, dict)]
    bad = [number for number, line in enumerate(lines, 1) if isinstance(line, bytes)]
    with tempfile.TemporaryDirectory() as folder:
        path, said = pathlib.Path(folder) / "metrics.jsonl", []
        path.write_bytes(written(lines, plain) + tail)
        found = read_log(path)
        assert json.dumps(found.rows) == json.dumps(rows)
        assert [number for number, _ in found.bad] == bad
        with MetricsWriter(path, step, say=said.append) as metrics:
            metrics.write(step + 1, "train", loss=0.5)
        kept = [line for line in lines if isinstance(line, bytes) or line["step"] <= step]
        last = {"step": step + 1, "split": "train", "loss": 0.5}
        assert path.read_bytes() == written([*kept, last], plain)
        assert len(said) == bool(bad)
        if bad:
            assert f"first is line {bad[0]}," in said[0]


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_a_bad_line_is_named_and_costs_no_other(line, tmp_path):
    path, row = tmp_path / "metrics.jsonl", {"step": 5, "split": "train"}
    path.write_bytes(written([row, line, row]))
    log = read_log(path)
    assert log.rows == [row, row]
    assert [number for number, _ in log.bad] == [2]
    assert "1 line is no row" in log.told()
    assert "\n" not in log.told()


def test_a_last_line_that_was_cut_short_is_forgiven(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = written([{"step": 1, "split": "train"}, {"step": 2, "split": "train"}])
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        assert not read_log(path).bad
        assert len(read_metrics(path)) == sum(
            length >= end for end in (len(whole) / 2 - 1, len(whole) - 1)
        )


def test_a_value_that_is_no_finite_number_is_no_point():
    values = (1.0, 2, None, "3", True, [4], float("nan"), float("inf"), 10**400)
    rows = [{"step": i, "split": "train", "loss": v} for i, v in enumerate(values)]
    assert points(rows, "train") == [(0, 1.0), (1, 2.0)]


def test_a_log_that_is_no_file_is_not_replaced(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match="is a folder, not a file"):
        MetricsWriter(tmp_path / "metrics.jsonl")


@contextlib.contextmanager
def no_room():
    """While open, the system lets no file grow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_ends_nothing_is_told_once_and_costs_no_row(tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    with MetricsWriter(path, say=said.append) as metrics:
        metrics.write(1, "train", loss=1.0)
        with no_room():
            for step in range(2, 30):
                metrics.write(step, "train", loss=1.0)
        assert len(said) == 2  # the lines, and TensorBoard
        assert "cannot be written (the file would be larger than is allowed)" in said[0]
        assert "TensorBoard gets no more" in said[1]
        assert [row["step"] for row in read_metrics(path)] == [1]
        metrics.write(30, "train", loss=1.0)
    assert said[2:] == [f"{path} is written again, 29 lines late"]
    log = read_log(path)
    assert ([row["step"] for row in log.rows], log.bad) == (list(range(1, 31)), [])


def test_lines_that_never_found_room_are_counted(tmp_path):
    path, said = tmp_path / "metrics.jsonl", []
    with MetricsWriter(path, say=said.append) as metrics, no_room():
        metrics.write(1, "train", loss=1.0)
        metrics.write(2, "train", loss=1.0)
        metrics.__exit__()
    assert f"2 lines of {path} are lost" in said


@pytest.mark.parametrize("place", ["metrics.jsonl", "tensorboard"])
def test_a_place_that_has_become_another_thing_ends_nothing(tmp_path, place):
    said = []
    with MetricsWriter(tmp_path / "metrics.jsonl", say=said.append) as metrics:
        (path := tmp_path / place).rename(tmp_path / "gone")
        path.mkdir() if path.suffix else path.touch()
        metrics.write(1, "train", loss=1.0)
        metrics.write(2, "train", loss=1.0)
    assert len(said) <= 2


def test_rows_of_later_steps_are_moved_where_they_are_asked_for(tmp_path):
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "aside"
    rows = [{"step": step, "split": "train"} for step in range(1, 7)]
    path.write_bytes(written(rows))
    MetricsWriter(path, 4, aside=aside)
    assert (path.read_bytes(), aside.read_bytes()) == (written(rows[:4]), written(rows[4:]))


def test_tensorboard_reads_what_is_written(tmp_path):
    with MetricsWriter(tmp_path / "metrics.jsonl", 6) as metrics:
        metrics.write(7, "train", loss=0.5, note="words", count=3)
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12]) == (masked_crc32c(data[:8]),)
        event, data = data[12 : 12 + size], data[12 + size :]
        assert struct.unpack("<I", data[:4]) == (masked_crc32c(event),)
        data = data[4:]
        found.append(Event.FromString(event))
    assert [(event.step, event.session_log.status) for event in found[:2]] == [(7, 0), (7, 1)]
    values = {v.tag: (event.step, v.simple_value) for event in found for v in event.summary.value}
    assert values == {"train/loss": (7, 0.5), "train/count": (7, 3.0)}
