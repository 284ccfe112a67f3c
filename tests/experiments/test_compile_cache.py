"""Runs are the same, whether their programs were compiled now or before."""

import pytest

from gam_jax.training.metrics import read_metrics
from sharding.compile_cache import OFF


@pytest.mark.slow
def test_a_run_and_its_resume_are_the_same_with_programs_of_before_and_without(corpus_runs):
    """Bit for bit: from a cold folder, from a warm one, and from none."""
    cold, warm, off = (corpus_runs(where) for where in ("kept", "kept", OFF))
    assert cold == warm == off
    assert len(cold) == 6


@pytest.fixture
def corpus_runs(workshop, tmp_path):
    """The losses of three steps and of three more, in two processes."""

    def losses(where):
        run = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        cache = where if where == OFF else tmp_path / where
        args = (f"--run={run}", f"--compile_cache={cache}")
        first = workshop.run("train", *args, *workshop.settings, "--config.train.stop_at=3")
        assert first.code == 0, first.err
        more = workshop.run("train", *args, "--resume", "--config.train.stop_at=6")
        assert more.code == 0, more.err
        rows = read_metrics(run / "metrics.jsonl")
        return [row["loss"] for row in rows if row["split"] == "train"]

    return losses
