"""Benchmarks in one file, what is slower from one to another, and the page of them."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from experiments.benchmark import loss, peer_layers, peers, serve
from experiments.benchmark.__main__ import BENCHMARKS
from experiments.benchmark.against import compare
from experiments.benchmark.collect import Measured, read
from experiments.benchmark.page import page
from experiments.benchmark.timing import Quantity

MACHINE = {"processor": "a", "cores": 2, "backend": "cpu", "load": 0.1, "jax": "1", "python": "3"}


def measured(machine=MACHINE, load=(0.1, 1.0), **figures):
    """A file with one row."""
    return Measured("file.json", "today", machine, load, (), {"scan": {"a row": figures}})


def seconds(middle, spread=0.01):
    """A time with quartiles that far away, as a share."""
    return Quantity(middle, middle * (1 - spread), middle * (1 + spread), "s")


def verdict(old, new, **options):
    """Of one figure."""
    (change,) = compare(measured(it=old), measured(it=new), **options).changes
    return change.verdict


times = st.floats(1e-6, 1e3)


@given(times, st.floats(1.15, 50))
def test_beyond_noise_is_slower_and_the_other_way_round_faster(before, factor):
    assert verdict(seconds(before), seconds(before * factor)) == "slower"
    assert verdict(seconds(before * factor), seconds(before)) == "faster"


@given(times, st.floats(1.0, 3.0), st.floats(0.5, 0.9))
def test_what_lies_within_the_quartiles_is_noise(before, factor, spread):
    assume(factor * (1 - spread) <= 1 + spread)
    assert verdict(seconds(before, spread), seconds(before * factor, spread)) == "same"


@given(times, st.floats(1.0, 1.09))
def test_less_than_the_tolerance_is_no_change(before, factor):
    assert verdict(seconds(before, 1e-6), seconds(before * factor, 1e-6)) == "same"
    assert verdict(seconds(before, 1e-6), seconds(before * 1.5, 1e-6), tolerance=0.6) == "same"


def test_more_of_a_speed_is_better_and_ratios_are_not_judged():
    assert verdict(Quantity.exactly(100, "tokens/s"), Quantity.exactly(50, "tokens/s")) == "slower"
    assert verdict(Quantity.exactly(50, "tokens/s"), Quantity.exactly(100, "tokens/s")) == "faster"
    assert not compare(measured(it=Quantity.exactly(1)), measured(it=Quantity.exactly(9))).changes


def test_bytes_have_no_noise():
    assert verdict(Quantity.exactly(1000, "B/token"), Quantity.exactly(1020, "B/token")) == "larger"
    assert verdict(Quantity.exactly(1000, "B"), Quantity.exactly(1005, "B")) == "same"
    assert verdict(Quantity.exactly(0, "B"), Quantity.exactly(8, "B")) == "larger"


def test_another_or_a_busy_machine_is_noted_and_so_is_what_is_missing():
    old = measured(it=seconds(1.0), gone=seconds(1.0))
    new = measured({**MACHINE, "processor": "b"}, (3.0, 3.0), it=seconds(2.0))
    changes = compare(old, new)
    assert "processor: a before, b now" in changes.notes
    assert any("busy" in note for note in changes.notes)
    assert changes.missing == ["scan: a row: gone"]
    assert changes.machine == pytest.approx(2.0)


@given(st.lists(times, min_size=2, max_size=9), st.floats(0.01, 100))
def test_a_figure_keeps_its_order_in_any_unit(values, factor):
    figure = Quantity.of(values, "s")
    for one in (figure, figure.times(factor, "us"), figure.rate(factor, "tokens/s")):
        assert one.low <= one.median <= one.high


def test_without_torch_peers_say_what_they_need(command):
    if peers.installed():
        pytest.skip("torch and transformers are here")
    result = command("benchmark.__main__", "peers")
    assert result.code == 2
    assert "benchmark peers needs torch: pip install 'gam_jax[official]'" in result.err


def test_beside_peers_each_row_has_both_speeds_and_their_ratio():
    if not peers.installed():
        pytest.skip("torch and transformers are not here")
    rows = peers.run(2, short=True)
    attention = "attention, 1 rows of 1,024, forward and backward"
    assert list(rows) == ["Llama, 1 rows, writing", "Llama, 1 rows, a prompt of 512", attention]
    for name, row in rows.items():
        other = "PyTorch" if name == attention else "transformers"
        assert row["gam_jax"].median > 0 < row[other].median
        assert row["time, ours over theirs"].unit == ""


@pytest.mark.parametrize("kind", ["Llama", "Mamba2"])
def test_a_server_writes_what_generate_writes_from_prompts_of_unlike_lengths(kind):
    if not peers.installed():
        pytest.skip("torch and transformers are not here")
    ((name, row),) = serve._beside_generate(1, (5, 21, 34), 8, kind).items()
    assert name == f"{kind}, 3 prompts of 5 to 34, 8 each"
    assert row["texts alike"].median == 3
    assert row["gam_jax"].median > 0 < row["transformers"].median


def test_the_loss_is_timed_and_its_bytes_are_counted():
    (row,) = loss.run(2, short=True).values()
    assert row["gam_jax"].unit == "s"
    assert row["all logits"].median == 256 * 1000 * 4 / 2**20
    assert ("torch" in row) == (importlib.util.find_spec("torch") is not None)
    # Logits, what their exponentials become, and the gradients before they are scaled.
    assert row["temporary"].median < (2 * 256 * 1000 + 2 * 1256 * 512) * 4 / 2**20


def test_the_scan_in_chunks_that_mamba_2_is_timed_beside_is_its_recurrence():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    c, b = random.normal(size=(2, 1, 128, 1, 5))
    x, decay = random.normal(size=(1, 128, 2, 3)), -random.uniform(0, 1, (1, 128, 2))
    state, want = np.zeros((2, 5, 3)), []
    for t in range(128):
        state = np.exp(decay[0, t])[:, None, None] * state + b[0, t, 0][:, None] * x[0, t, :, None]
        want.append(np.einsum("hnp,n->hp", state, c[0, t, 0]))
    found = peer_layers.scan_in_chunks(*map(torch.tensor, (c, b, x, decay)))
    np.testing.assert_allclose(found.numpy()[0], want, atol=1e-10)


@pytest.mark.slow
def test_all_are_measured_compared_and_shown(workshop, tmp_path, command):
    file = tmp_path / "figures.json"
    args = ("all", str(file), "--only=attention", "--short", "--repeats=2")
    done = workshop.run("benchmark", *args)
    assert done.code == 0, done.err
    found = read(file)
    assert found.machine["cores"] >= 1
    rows = found.benchmarks["attention"]
    row = rows["256 tokens"]
    for name in ("at once", "blocks", "window"):
        assert 0 < row[name].low <= row[name].median <= row[name].high
    assert row["blocks, temporary"].unit == "B/token"
    more = command("benchmark.__main__", *args, "--resume")  # nothing is left to measure
    assert more.code == 0
    assert read(file) == found
    other = command("benchmark.__main__", *args[:-1], "--repeats=9", "--resume")
    assert other.code == 2
    assert "--repeats=2" in other.err
    same = command("benchmark.__main__", "compare", str(file), str(file))
    assert same.code == 0
    assert "0 worse of 6 compared" in same.out
    slow = json.loads(file.read_text())
    slow["benchmarks"]["attention"]["256 tokens"]["blocks"] = {
        "median": 9.0,
        "low": 8.0,
        "high": 10.0,
        "unit": "s",
    }
    (tmp_path / "slow.json").write_text(json.dumps(slow))
    worse = command("benchmark.__main__", "compare", str(file), str(tmp_path / "slow.json"))
    assert worse.code == 1
    assert "attention: 256 tokens: blocks" in worse.out
    assert "slower" in worse.out
    shown = command("benchmark.__main__", "page", str(file), str(tmp_path / "page.md"))
    assert shown.code == 0
    text = (tmp_path / "page.md").read_text()
    assert text == page(found, BENCHMARKS)
    assert "--repeats=2 --short" in text
    assert "| 256 tokens |" in text


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("everything",), ["step", "compare"]),
        (("compare", "one.json"), ["compare takes 2 files"]),
        (("compare", "one.json", "two.json"), ["one.json", "No such file"]),
        (("all", "nowhere/figures.json"), ["nowhere"]),
        (("all", "figures.json", "--only=stepp"), ["'stepp'", "'step'"]),
        (("scan", "figures.json"), ["scan takes no files"]),
        (("scan", "--emulate=2"), ["chooses its own devices"]),
    ],
)
def test_bad_input_is_one_line_and_code_2(args, words, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command("benchmark.__main__", *args)
    assert result.code == 2
    assert all(word in result.err for word in words), result.err
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_of_figures_is_said(command, tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    result = command("benchmark.__main__", "page", str(tmp_path / "list.json"), "out.md")
    assert result.code == 2
    assert "was not written by `benchmark all`" in result.err
