"""The commands of parallel streams: what they cost, by the paper's model; runs, laws, stages."""

from __future__ import annotations

import json
import math

import pytest

from experiments.parscale import measure
from experiments.parscale.cost import GIB, Transformer, inference, table
from experiments.parscale.law import of_runs

OFFICIAL = {
    (1, 1, 128, 256): (3.408, 0.510),
    (1, 8, 128, 256): (3.731, 0.551),
    (8, 1, 128, 256): (3.536, 0.555),
    (8, 8, 128, 256): (4.507, 0.910),
}
"""(streams, batch, read, written) -> GiB and seconds that the official script prints at 1.6 B."""


@pytest.mark.parametrize(("case", "printed"), OFFICIAL.items(), ids=str)
def test_the_model_of_cost_prints_what_the_official_script_prints(case, printed):
    found = inference(Transformer(), *case)
    assert (round(found.memory / GIB, 3), round(found.seconds, 3)) == printed


def test_at_batch_1_streams_are_cheaper_than_as_good_a_loss_by_parameters():
    """The paper says 22 times less memory and 6 times less time; its script, 18 and 5."""
    *_, eight = table(1)
    assert eight["by_parameters_GiB"] / eight["added_GiB"] == pytest.approx(18, abs=0.6)
    assert eight["by_parameters_seconds"] / eight["added_seconds"] == pytest.approx(5.5, abs=0.2)


def test_at_batch_8_they_save_memory_and_take_longer():
    *_, eight = table(8)
    assert eight["by_parameters_GiB"] / eight["added_GiB"] == pytest.approx(2.85, abs=0.1)
    assert eight["by_parameters_seconds"] / eight["added_seconds"] == pytest.approx(0.75, abs=0.05)


def test_what_is_measured_grows_with_streams(monkeypatch):
    monkeypatch.setattr(measure, "WIDTH", 32)
    rows = measure.table(1, batches=(1,), streams=(1, 2))
    assert [row["streams"] for row in rows] == [1, 2]
    assert rows[1]["carry_bytes"] > 2 * rows[0]["carry_bytes"]  # the prefix, too
    assert all(row["ms_per_token"] > 0 and row["bytes"] > row["carry_bytes"] for row in rows)


def test_runs_that_follow_the_law_tell_its_numbers(tmp_path):
    """And a spread over seeds that is what was put in."""
    numbers = {"E": 1.2, "A": 3e4, "alpha": 0.4, "k": 0.35}
    trials = [
        {"width": n, "streams": streams, "seed": seed, "counted": 1000 * n, "loss": loss + off}
        for n in (10, 20, 40, 80)
        for streams in (1, 2, 4, 8)
        for loss in [1.2 + (3e4 / (1000 * n * (0.35 * math.log(streams) + 1))) ** 0.4]
        for seed, off in enumerate((-0.01, 0.01))
    ]
    found = of_runs(trials, tmp_path)
    parallel = next(one for one in found["fits"] if one["law"] == "parallel")
    assert parallel["values"] == pytest.approx(numbers, rel=0.01)
    assert found["fits"][0] == parallel
    assert {round(row["spread"], 6) for row in found["rows"]} == {round(0.01 * 2**0.5, 6)}
    assert all(row["gain"] > 0 for row in found["rows"] if row["streams"] > 1)
    assert (tmp_path / "law.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "law.json").read_text())["rows"] == found["rows"]


@pytest.fixture(scope="module")
def runs(workshop):
    """The two trainings of `law`, tiny, and where they are."""
    out = workshop.path / "parscale"
    args = (
        f"--data=text:{workshop.path / 'corpus.txt'}",
        f"--data_dir={workshop.path / 'data'}",
        f"--out={out}",
        "--sizes=16",
        "--streams=1,2",
        "--seeds=0",
        "--steps=8",
        "--second=4",
    )
    result = workshop.run("parscale.__main__", "law", *args, "--json")
    assert result.code == 0, result.err
    return args, out / "gam", json.loads(result.out)


def test_runs_differ_in_streams_alone_and_are_kept(runs, command):
    args, out, found = runs
    one, two = found["rows"]
    assert (one["streams"], two["streams"]) == (1, 2)
    assert one["counted"] < two["counted"]
    assert one["gain"] == 0 != two["gain"]
    assert not found["fits"]  # one size tells no law
    assert (out / "law.png").stat().st_size > 10_000
    again = command("parscale.__main__", "law", *args, "--json")
    assert json.loads(again.out)["trials"] == found["trials"]


def test_a_second_stage_begins_where_the_first_has_ended(runs, command):
    args, out, found = runs
    result = command("parscale.__main__", "stages", *args, "--streams=2", "--json")
    assert result.code == 0, result.err
    rows = json.loads(result.out)["rows"]
    assert [(row["stage"], row["streams"]) for row in rows] == [("frozen", 2), ("all", 2)]
    assert rows[0]["loss"] != rows[1]["loss"] != found["rows"][0]["loss"]
    taken = json.loads((out / "16-p1-0-frozen-p2" / "init.json").read_text())
    assert all(name.split("/")[0] in ("starts", "aggregator") for name in taken["missing"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("law", "--mixer=gem"), "did you mean 'gam'"),
        (("law", "--mixer=gam,lstm"), "give one of"),
        (("law", "--streams=0"), "--streams: give at least one, none below 1"),
        (("law", "--sizes=small"), "--sizes: invalid literal"),
        (("buy",), "say one of law, stages, cost"),
    ],
)
def test_bad_input_is_refused_in_one_line(args, message, command):
    result = command("parscale.__main__", *args)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err
