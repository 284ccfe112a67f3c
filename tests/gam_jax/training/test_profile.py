"""A trace holds the steps that were asked for; nonsense is refused before anything is written."""

from __future__ import annotations

import gzip
import json

import pytest

from gam_jax.training import fit
from gam_jax.training.loop import Beginning
from gam_jax.training.metrics import read_metrics
from gam_jax.training.profile import Span, Tracer
from gam_jax.training.progress import Progress
from sharding.errors import UserError
from tests.gam_jax.training import line

pytestmark = pytest.mark.usefixtures("compiled_once")
QUIET = Progress(visible=False)


def traces(folder):
    """The events of each trace."""
    found = sorted(folder.glob("profile/plugins/profile/*/perfetto_trace.json.gz"))
    return [json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] for path in found]


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A run of six steps, of which the third and the fourth are traced."""
    run = tmp_path_factory.mktemp("runs") / "traced"
    return fit(line.experiment(6), line.data(), run=run, progress=QUIET, profile=Span(3, 2))


def test_the_trace_holds_those_steps_and_is_a_trace_of_tensorboard(traced):
    (events,) = traces(traced.folder.path)
    steps = [event for event in events if event.get("name") == "train"]
    assert sorted(int(event["args"]["step_num"]) for event in steps) == [3, 4]
    assert list(traced.folder.profile.glob("plugins/profile/*/*.xplane.pb"))


def test_the_time_of_tracing_is_in_no_step(traced):
    rows = [row for row in read_metrics(traced.folder.metrics) if row["split"] == "train"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows[1:]:
        assert 0 <= row["data_wait_seconds"] <= row["step_seconds"] < 2
        assert row["step_seconds"] * row["rows_per_second"] == pytest.approx(line.ROWS, rel=1e-2)
        assert row["model_flops_per_second"] * row["step_seconds"] == pytest.approx(line.FLOPS)
        assert "mfu" not in row  # of a processor nothing is known
    assert any(row["save_seconds"] > 0 for row in rows[1:])


def test_a_run_that_ends_inside_of_the_steps_writes_what_it_has(tmp_path):
    experiment = line.experiment(6, validate_every=2, goal="loss<=1e9")
    fit(experiment, line.data(), run=tmp_path / "run", progress=QUIET, profile=Span(2, 4))
    (events,) = traces(tmp_path / "run")
    assert sum(event.get("name") == "train" for event in events) == 1


def test_an_error_in_the_middle_closes_the_trace(tmp_path):
    said = []

    def broken(folder):
        with Tracer(Span(1, 5), folder, said.append) as tracer:
            tracer.start(1, ())
            raise ZeroDivisionError

    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:  # a second trace can begin only after the first
        with pytest.raises(ZeroDivisionError):
            broken(folder)
    assert said == [f"trace of steps 1 on in {folder}" for folder in folders]


def test_a_folder_that_cannot_be_written_costs_the_trace_alone(tmp_path):
    (tmp_path / "file").touch()
    said = []
    with Tracer(Span(1, 1), tmp_path / "file" / "profile", said.append) as tracer:
        tracer.start(1, ())
        tracer.stop(1, ())
    assert len(said) == 1
    assert said[0].startswith("no trace: ")
    assert said[0].endswith("training goes on")


def test_steps_that_are_past_are_refused_before_anything_is_read(traced):
    with pytest.raises(UserError, match=r"--profile=2:3: the run goes on after step 6"):
        fit(
            line.experiment(6),
            line.data(),
            run=traced.folder.path,
            resume=True,
            progress=QUIET,
            beginning=Beginning(),
            profile=Span(2, 3),
        )
    assert len(traces(traced.folder.path)) == 1


@pytest.mark.parametrize(
    "text",
    ["", "3", "3:", ":3", "0:3", "3:0", "-1:2", "3:-2", "3:101", "a:b", "1.5:2", "3:2:1", " 3:2",
     "3:2\n", "\u0663:2", "9" * 5000 + ":1", "1e3:1", "nan:1"],
)  # fmt: skip
def test_what_is_no_step_and_count_is_refused_in_one_line(text):
    with pytest.raises(UserError) as refused:
        Span.parse(text)
    assert str(refused.value).startswith("--profile=")
    assert len(str(refused.value)) < 200


def test_steps_beyond_the_end_are_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(UserError, match=r"--profile=5:3: the run ends at step 6"):
        fit(line.experiment(6), line.data(), run=tmp_path / "run", profile=Span(5, 3))
    assert not (tmp_path / "run").exists()
