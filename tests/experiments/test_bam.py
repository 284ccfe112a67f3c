"""BAM's recipe: its texts, its costs, and that the command goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import json

import pytest

from experiments.bam.__main__ import summary
from experiments.bam.domains import documents, splits
from experiments.bam.trial import MIXTURES, SCALES, SEED, Scale, Trial, operations
from gam_jax.training.progress import Progress
from sharding.errors import UserError

STAGES = [SEED, "python", "english", "c", *MIXTURES]


def test_domains_are_text_that_is_here_and_no_document_is_in_both_parts():
    texts, parts = documents(), splits()
    assert list(texts) == ["python", "english", "c"]
    for domain, (training, validation) in parts.items():
        whole = sum(map(len, texts[domain].values()))
        assert 0.02 * whole < len(validation) < 0.3 * whole
        assert len(training) > 300_000
        held = bytes(validation)
        assert not any(
            text in bytes(training) for text in held.split(b"\n\n\n\n") if len(text) > 2000
        )
    assert b"def " in bytes(parts["python"][0])
    assert b"#define" in bytes(parts["c"][0])
    assert b"statement" in bytes(parts["english"][0])


def test_operations_are_those_of_the_paper_s_table():
    """Of a layer with a context of 256, recomputed: its print adds 6,144 to each feed-forward."""
    paper = Scale(width=1024, depth=1, heads=8, hidden=2048, window=256)
    head = 2 * 1024 * 256
    assert operations(paper, "btx", 4) - head == 21_510_144 - 6_144
    assert operations(paper, "bam", 4) - head == 48_257_024 - 6_144
    assert operations(paper, None, 4) < operations(paper, "btx", 4)
    shared = operations(paper, "bam_shared", 4)
    assert operations(paper, "btx", 4) < shared < operations(paper, "bam", 4)


def test_means_and_spreads_are_over_seeds():
    stages = [
        {"losses": {"python": loss, "c": 2.0}, "steps": 300, "parameters": 9, "active": 5}
        for loss in (1.0, 3.0)
    ]
    trials = [{"seed": i, "stages": {"btx": stage}} for i, stage in enumerate(stages)]
    (row,) = summary(Scale(), ["python", "c"], trials)
    assert row["losses"] == {"python": 2.0, "c": 2.0, "mean": 2.0}
    assert row["spread"]["python"] == pytest.approx(2**0.5)
    assert row["spread"]["c"] == 0
    assert row["operations"] == 1
    (alone,) = summary(Scale(), ["python", "c"], trials[:1])
    assert alone["spread"]["mean"] is None


def test_the_command_prints_every_stage_and_then_reads_what_is_done(command, tmp_path, monkeypatch):
    args = ("--scale=short", f"--out={tmp_path / 'bam'}", "--json")
    first = command("bam.__main__", *args)
    assert first.code == 0, first.err
    rows = {row["stage"]: row for row in json.loads(first.out)["rows"]}
    assert list(rows) == STAGES
    assert all(0 < row["losses"]["mean"] < 6 for row in rows.values())
    assert rows["bam"]["losses"] != rows["bam_shared"]["losses"]
    assert rows["btx"]["losses"]["mean"] < rows[SEED]["losses"]["mean"]
    for name in ("bam_compute", "bam_shared_compute"):
        assert rows[name]["operations"] == pytest.approx(1, abs=0.1)
    monkeypatch.setattr("experiments.bam.trial._training", None)  # nothing is trained again
    again = command("bam.__main__", *args)
    assert json.loads(again.out) == json.loads(first.out)
    monkeypatch.undo()
    kept = tmp_path / "bam" / "seed0" / "python.safetensors"
    before = kept.read_bytes()
    kept.unlink()  # what others start from is found again, never taken for untrained
    command("bam.__main__", *args)
    assert kept.read_bytes() == before


def test_stages_of_other_settings_are_refused(tmp_path):
    texts = splits()
    Trial(SCALES["short"], 0, texts, tmp_path)
    other = dataclasses.replace(SCALES["short"], rows=7)
    with pytest.raises(UserError, match="other settings or texts: name another --out"):
        Trial(other, 0, texts, tmp_path).run(Progress(0, visible=False))


def test_seeds_that_are_no_numbers_are_refused(command):
    result = command("bam.__main__", "--seeds=0,x")
    assert result.code == 2
    assert "--seeds=0,x: give whole numbers" in result.err
